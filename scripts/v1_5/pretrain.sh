#!/usr/bin/env bash
# First stage of LLaVA-1.5: the projector alone learns captions (8 x A100, total batch 256).
# Needs LLaVA-Pretrain under playground/data; MODEL=lmsys/vicuna-7b-v1.5 for the smaller one.
# Flags given to this script come last and win: scripts/v1_5/pretrain.sh --per_device_train_batch_size 4
# LAUNCH starts the processes: "deepspeed --module" (default), "torchrun --nproc_per_node 8 --module",
# "accelerate launch --module".
set -euo pipefail
cd "$(dirname "$0")/../.."

${LAUNCH:-deepspeed --module} llava.train.train_mem \
    --deepspeed ./scripts/zero2.json \
    --model_name_or_path "${MODEL:-lmsys/vicuna-13b-v1.5}" \
    --version plain \
    --data_path ./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json \
    --image_folder ./playground/data/LLaVA-Pretrain/images \
    --vision_tower openai/clip-vit-large-patch14-336 \
    --tune_mm_mlp_adapter True \
    --mm_projector_type mlp2x_gelu \
    --mm_vision_select_layer -2 \
    --mm_use_im_start_end False \
    --mm_use_im_patch_token False \
    --save_format original \
    --output_dir ./checkpoints/llava-v1.5-13b-pretrain \
    --per_device_train_batch_size 32 \
    --learning_rate 1e-3 \
    --save_steps 24000 \
    --bf16 True \
    --num_train_epochs 1 \
    --per_device_eval_batch_size 4 \
    --gradient_accumulation_steps 1 \
    --eval_strategy no \
    --save_strategy steps \
    --save_total_limit 1 \
    --weight_decay 0. \
    --warmup_steps 0.03 \
    --lr_scheduler_type cosine \
    --logging_steps 1 \
    --tf32 True \
    --model_max_length 2048 \
    --gradient_checkpointing True \
    --dataloader_num_workers 4 \
    "$@"
