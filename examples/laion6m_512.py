"""OpenUni's laion6m dataset config, as an mmengine lazy config: what differs from upstream's is marked.

Use it like upstream's: ``from ..datasets.laion6m_512 import train_dataloader`` within ``read_base()``.
"""

# ruff: noqa: C408  (dict(…) is how configs of mmengine are written)

from transformers import AutoTokenizer

from builder.mm import (  # upstream: src.datasets.text2image.caption_datasets, src.datasets.collate_functions
    CaptionDataset,
    InfiniteSampler,  # upstream: mmengine.dataset; this one resumes at once
    SamplerStateHook,
    collate_func_gen,
)

prompt_template = dict(
    IMG_START_TOKEN="<img>",
    IMG_END_TOKEN="</img>",
    IMG_CONTEXT_TOKEN="<IMG_CONTEXT>",
    SYSTEM="<|im_start|>system\n{system}<|im_end|>\n",
    INSTRUCTION="<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n",
    SUFFIX="<|im_end|>",
    SUFFIX_AS_EOS=True,
    SEP="\n",
    STOP_WORDS=["<|im_end|>"],
    GENERATION="Generate an image: {input}",
    CFG="Generate an image.",
)
pad_index = 0
image_size = 512
max_length = 128

tokenizer = dict(
    type=AutoTokenizer.from_pretrained,
    pretrained_model_name_or_path="OpenGVLab/InternVL3-2B",
    trust_remote_code=True,
    padding_side="right",
)

dataset = dict(
    type=CaptionDataset,
    data_path="data/laion6m",  # upstream: data/laion6m/data.json; now a converted folder, or a source with an index
    image_size=image_size,
    cap_source="re_caption",
    cap_folder="data/laion6m/raw",
    image_folder="data/laion6m/raw",
    unconditional=0.1,
    prompt_template=prompt_template,
    ceph_folder=None,
    ceph_config=None,
    tokenizer=tokenizer,
    max_length=max_length,
)

train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    pin_memory=True,
    dataset=dataset,
    sampler=dict(type=InfiniteSampler, shuffle=True),
    collate_fn=dict(type=collate_func_gen, pad_index=pad_index),
)

custom_hooks = [dict(type=SamplerStateHook)]
