#!/usr/bin/env bash
# ActivityNet-QA: answers, and their accuracy by comparing strings.
# Usage: activitynet.sh [K] [checkpoint] [flags of the asking command]      (136 LanguageBind/Video-LLaVA-7B-hf)
source "$(dirname "${BASH_SOURCE[0]}")/video_common.sh"
video_qa Activitynet_Zero_Shot_QA all_test "$@"
