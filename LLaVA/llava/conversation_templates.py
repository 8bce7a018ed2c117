"""The fixed texts of the conversation templates.

Checkpoints were trained on these sentences byte for byte, oddities included (a missing space before "The visual", two
spaces after "while being safe."), so none may be tidied up. ``conversation`` says how each one is put together.
"""

from __future__ import annotations

POLITE_TO_USER = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
POLITE_TO_HUMAN = POLITE_TO_USER.replace("user", "human")

IMAGE_TAG_FORMAT = "The visual content will be provided with the following format: <Image>visual content</Image>."
SEES_AND_ASSISTS = (
    "able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
TAGGED_CHAT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    f"The assistant is {SEES_AND_ASSISTS}{IMAGE_TAG_FORMAT}"
)
LANGUAGE_AND_VISION = f"You are a helpful language and vision assistant. You are {SEES_AND_ASSISTS}"

ABOUT_THE_PICTURE = "Answer the questions about the visual content that the user provides."
ABOUT_THE_TAGGED_PICTURE = ABOUT_THE_PICTURE + IMAGE_TAG_FORMAT

LLAMA_2_SAFETY = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)

MPT_HONEST = (
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."
)
ANSWER_THE_QUESTIONS = "Answer the questions."
HELPFUL = "You are a helpful assistant."
QWEN_2_5 = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
ZEPHYR = "You are a helpful AI assistant."
ORCA = (
    "You are MistralOrca, a large language model trained by Alignment Lab AI. "
    "Write out your reasoning step-by-step to be sure you get the right answers!"
)

# Vicuna v0 opens with this worked example; its answer ends in a newline.
ONE_SHOT_QUESTION = "What are the key differences between renewable and non-renewable energy sources?"
ONE_SHOT_ANSWER = (
    "Renewable energy sources are those that can be replenished naturally in a relatively short amount of time, such "
    "as solar, wind, hydro, geothermal, and biomass. Non-renewable energy sources, on the other hand, are finite and "
    "will eventually be depleted, such as coal, oil, and natural gas. Here are some key differences between renewable "
    "and non-renewable energy sources:\n"
    "1. Availability: Renewable energy sources are virtually inexhaustible, while non-renewable energy sources are "
    "finite and will eventually run out.\n"
    "2. Environmental impact: Renewable energy sources have a much lower environmental impact than non-renewable "
    "sources, which can lead to air and water pollution, greenhouse gas emissions, and other negative effects.\n"
    "3. Cost: Renewable energy sources can be more expensive to initially set up, but they typically have lower "
    "operational costs than non-renewable sources.\n"
    "4. Reliability: Renewable energy sources are often more reliable and can be used in more remote locations than "
    "non-renewable sources.\n"
    "5. Flexibility: Renewable energy sources are often more flexible and can be adapted to different situations and "
    "needs, while non-renewable sources are more rigid and inflexible.\n"
    "6. Sustainability: Renewable energy sources are more sustainable over the long term, while non-renewable sources "
    "are not, and their depletion can lead to economic and social instability.\n"
)
