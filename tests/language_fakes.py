"""A tiny language model with a character tokenizer, and questions about an invented clip."""
from pathlib import Path

import numpy as np
import torch

from scenes.questions.question import Question
from teacher.language.encode import RoomQuestions

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,?!'()[]:-\n<>|_"


def save_tiny_lm(folder: Path, kind: str = "llama", chat: bool = True, eos: bool = True) -> Path:
    """A random causal language model in the official layout: llama (as SmolLM2) or qwen2 (as
    LLaVA-Video)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    # Qwen2's own
    words = {c: i for i, c in enumerate(["<end>", "<unk>", *LETTERS, "<|endoftext|>"])}
    letters = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letters.decoder = decoders.Fuse()
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="<unk>",
                                        chat_template=template if chat else None,
                                        **({"eos_token": "<end>"} if eos else {}))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config, model = {
        "llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)
    }[kind]
    sizes = {
        "vocab_size": len(words), "hidden_size": 24, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "eos_token_id": 0, "bos_token_id": None, "pad_token_id": None,
        "tie_word_embeddings": kind == "llama", "max_position_embeddings": 4096
    }
    model(config(**sizes)).save_pretrained(folder)
    return folder


def sample_room(name: str = "train/00000_0", frames: int = 2, number: int = 3) -> RoomQuestions:
    """Four boxes in a row, each the tokens of one quarter of the first frame; questions of every
    family.

    number: what there is to count.
    """
    rng = np.random.default_rng(list(name.encode()))
    boxes = np.array([[x, 0, 0.5, 0.8, 0.8, 1, 0] for x in range(4)], np.float32)
    inside = np.zeros((4, frames, 14, 14), np.float16)
    for i in range(4):
        inside[i, 0, 7 * (i // 2):7 * (i // 2) + 7, 7 * (i % 2):7 * (i % 2) + 7] = 1
    points, camera = rng.uniform(0.5, 4, (2, frames, 14, 14, 3)).astype(np.float32)
    mask = np.zeros((1, frames, 14, 14), np.float16)  # what the distance mentions
    mask[0, -1, 3:6, 8:12] = 1
    target = int(rng.integers(4))
    questions = [
        Question(name, "vsi:object_counting", "How many?", str(number), float(number), (),
                 boxes[:0], ()),
        Question(name, "camera_distance", "How far is the bed?", str(number), float(number), (),
                 boxes[:0], (), mentions=(("bed", 9, frames - 1),)),
        Question(name, "vsi:object_rel_distance", "Which?", "AB"[number % 2], None,
                 ("A. bed", "B. sofa"), boxes[:0], ()),
        Question(name, "ground", f"the thing {target}", None, None, (), boxes, (target, ),
                 "unique"),
        Question(name, "multi_ground", "every thing", None, None, (), boxes, (0, 3), "mt"),
        Question(name, "multi_ground", "no thing", None, None, (), boxes, (), "zt_wo_d"),
        Question(name, "caption", "Describe <coord>.", "a thing", None, (), boxes, (target, ),
                 answers=("a thing", )),
        Question(name, "situated", "What is near?", "bed", None, (), boxes[:0], (), "what",
                 ("bed", ))
    ]
    candidates = [list(range(len(q.boxes))) for q in questions]
    mentions = [[4] * len(q.mentions) for q in questions]
    regions = np.concatenate([inside, mask]).reshape(5, -1)
    boxes = np.concatenate([boxes, np.zeros((1, 7), np.float32)])
    return RoomQuestions(name, points, camera, 0.1, boxes, regions, questions, candidates, mentions)
