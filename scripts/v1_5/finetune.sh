#!/usr/bin/env bash
# Second stage of LLaVA-1.5: projector and language model learn to follow instructions (8 x A100, total batch 128).
# Needs the projector of pretrain.sh, llava_v1_5_mix665k.json and its pictures under playground/data.
# Flags given to this script come last and win: scripts/v1_5/finetune.sh --per_device_train_batch_size 4
# LAUNCH starts the processes: "deepspeed --module" (default), "torchrun --nproc_per_node 8 --module",
# "accelerate launch --module".
set -euo pipefail
cd "$(dirname "$0")/../.."

${LAUNCH:-deepspeed --module} llava.train.train_mem \
    --deepspeed ./scripts/zero3.json \
    --model_name_or_path "${MODEL:-lmsys/vicuna-13b-v1.5}" \
    --version v1 \
    --data_path ./playground/data/llava_v1_5_mix665k.json \
    --image_folder ./playground/data \
    --vision_tower openai/clip-vit-large-patch14-336 \
    --pretrain_mm_mlp_adapter ./checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin \
    --mm_projector_type mlp2x_gelu \
    --mm_vision_select_layer -2 \
    --mm_use_im_start_end False \
    --mm_use_im_patch_token False \
    --image_aspect_ratio pad \
    --group_by_modality_length True \
    --per_device_train_batch_size 16 \
    --save_steps 50000 \
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
    --learning_rate 2e-5 \
    --output_dir ./checkpoints/llava-v1.5-13b \
    "$@"
