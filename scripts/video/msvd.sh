#!/usr/bin/env bash
# MSVD-QA: answers, and their accuracy by comparing strings.
# Usage: msvd.sh [K] [checkpoint] [flags of the asking command]      (136 LanguageBind/Video-LLaVA-7B-hf)
source "$(dirname "${BASH_SOURCE[0]}")/video_common.sh"
video_qa MSVD_Zero_Shot_QA videos "$@"
