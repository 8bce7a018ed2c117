"""The audit: what was kept of each sample of an evaluation, as one page that opens without a network.

    python -m mob.audit samples.jsonl --images pictures/ --html report.html

The page filters by task, by right or wrong and by eta; shows every sample's picture with its prompt centres and visual
centres, question, answer, target, budget and radii; and draws eta, accuracy against eta and where the kept patches lie.

**What is read.** Files of JSON, one object a line (or one object, or a list, in a file), or folders of lmms-eval logs.
What a line is, is seen from its keys; several files may be given, and files of different kinds mixed.

=====================  ================================================================================================
lmms-eval              ``*_samples_<task>.jsonl`` of ``--log_samples``: ``doc_id``, ``input`` (or ``arguments``, or
                       ``doc.question``), ``target``, ``filtered_resps`` or ``resps``, and the metrics of the task. The
                       task is the one of the entry, of the line, or of the file's name.
llava.eval answers     ``question_id`` (or ``id``), ``prompt``, ``text`` (or ``pred``, the answer). Lines of several
                       files that share an id are one sample: answers, the file of ``--log-retained-patches``, and the
                       questions (``question_id``, ``image``, ``text``, ``label`` or ``answer``: the target), which
                       name the pictures. Where an id repeats within a file, as in MME, its n-th lines belong together.
run_llava              ``--save-record``: ``query``, ``answer`` and the fields of the record, side by side.
=====================  ================================================================================================

**The entry.** Under ``retained_patches`` of the line, or of anything inside it (lmms-eval carries it in
``token_counts``): one object or a list of them (one a request), with the fields of ``mob.RetainedPatches`` and, all of
them optional, next to them or in a list ``pictures`` with one object a picture:

- ``image_file``, ``image``, ``video`` ...: names of the pictures; also looked for in the line, its ``doc`` and the
  question. Several names for one picture are the frames of a video.
- ``sha256``, or any key with ``hash``: SHA-256, or its first 8 or more digits, of the file's bytes or of its RGB
  pixels (``image.convert("RGB").tobytes()``, turned as EXIF says or not); used where a name leads nowhere.
- ``image_size``, or ``width`` and ``height``: in pixels, so that a missing picture is drawn in its shape.
- ``box``: [left, top, right, bottom], the region in pixels of the picture that the grid covers.
- ``layers``: decoder layers of the model, or ``mean_tokens``: mean visual tokens a layer; ``task``, ``doc_id``.

**Right or wrong.** From the first metric that the line has (``exact_match``, ``accuracy``, ``...score``; a number in
0..1, right from 0.5 on; or an object with ``score``, or with prediction and truth). Without one, answer and target are
compared after lower case, without punctuation and articles. Without a target: unknown.
"""

from __future__ import annotations

from mob.audit.page import write_page
from mob.audit.pictures import Album
from mob.audit.reading import Reading, Sample, read

__all__ = ["Album", "Reading", "Sample", "read", "write_page"]
