# shellcheck shell=bash disable=SC2034 # the scripts use the arrays
# What the training scripts of LLaVA-1.5 share: the published settings, one place for each. Sourced, not run.
#
# LAUNCH starts the processes: "deepspeed --module" (default), "torchrun --nproc_per_node 8 --module",
# "accelerate launch --module". DEEPSPEED is the configuration of DeepSpeed, empty for none; by default the published
# one. Flags given to a script come last and win.

cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit

every_stage=(
  --vision_tower openai/clip-vit-large-patch14-336
  --mm_projector_type mlp2x_gelu
  --mm_vision_select_layer -2
  --mm_use_im_start_end False
  --mm_use_im_patch_token False
  --bf16 True
  --tf32 True
  --num_train_epochs 1
  --per_device_eval_batch_size 4
  --gradient_accumulation_steps 1
  --gradient_checkpointing True
  --eval_strategy no
  --save_strategy steps
  --save_total_limit 1
  --weight_decay 0.
  --warmup_steps 0.03
  --lr_scheduler_type cosine
  --logging_steps 1
  --model_max_length 2048
  --dataloader_num_workers 4
)

second_stage=(
  --version v1
  --image_aspect_ratio pad
  --group_by_modality_length True
  --per_device_train_batch_size 16
  --save_steps 50000
)
on_instructions=(
  --model_name_or_path "${MODEL:-lmsys/vicuna-13b-v1.5}"
  --data_path ./playground/data/llava_v1_5_mix665k.json
  --image_folder ./playground/data
  --pretrain_mm_mlp_adapter ./checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin
)
on_own_data=(
  --model_name_or_path "${MODEL:-liuhaotian/llava-v1.5-13b}"
  --data_path "${DATA:-./playground/data/task.json}"
  --image_folder "${IMAGES:-./playground/data}"
)
whole=(--learning_rate 2e-5)
lora=(--lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5 --learning_rate 2e-4 --save_format original)

train() { # the published DeepSpeed configuration, then flags
  local config="${DEEPSPEED-./scripts/$1.json}"
  ${LAUNCH:-deepspeed --module} llava.train.train_mem ${config:+--deepspeed "$config"} "${every_stage[@]}" "${@:2}"
}
