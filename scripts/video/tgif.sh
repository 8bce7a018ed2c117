#!/usr/bin/env bash
# TGIF-QA: answers, and their accuracy by comparing strings.
# Usage: tgif.sh [K] [checkpoint] [flags of the asking command]      (136 LanguageBind/Video-LLaVA-7B-hf)
source "$(dirname "${BASH_SOURCE[0]}")/video_common.sh"
video_qa TGIF_Zero_Shot_QA mp4 "$@"
