"""What transformers' shared tests skip on our classes, and why. A skip that is not listed here fails the run."""

SKIPPED = {
    "this machine lacks a device, a kernel or a package": (
        r"test requires (accelerator|multiple accelerators|MPS|the kernels library|Flash Attention( [34])?|deepspeed"
        r"|Timm|PyTesseract)",
    ),
    "for models of text, sound, video, or of several models": (
        r"is not in `self\.pipeline_model_mapping`",
        r"`run_pipeline_test` is currently not implemented",
        r"test_resize_embeddings is set to `False`",
        r"This model doesn't use `inputs_embeds`",
        r"(does not support|does not have) RoPE|no axial RoPE layer",
        r"Model does not support sliding window mask",
        r"has no sparse experts|`output_router_logits`|does not support grouped_mm",
        r"No (sequence-to-sequence|decoder-only) language modeling head",
        r"not (a )?composite|No subconfigs so|FerPll\w+ does not support SDPA",  # as a composite model
        r"Model does not have position embeddings",  # that can be resized
        r"_torch_compile_train_cls",
    ),
    "for models whose checkpoints have other names of weights, or parts that stay in float32": (
        r"No conversion found",
        r"has no _keep_in_fp32_modules",
    ),
    "no tensor-parallel plan: these models fit on any device": (r"Model does not have a TP plan",),
    "not among the models that transformers' team exports to a phone": (r"Not a prioritized model for now",),
    "our images are the same on each machine, with and without torchvision: one backend": (
        r"less than 2 backends",
        r"torchvision backend is not available",
    ),
    "the test is for processors with settings of another kind (lists that change in place, a check of its own)": (
        r"dict size or list image_mean",
        r"No validation found for `preprocess`",
    ),
    "another network as the encoder gives no attention maps, and maps of its stages for hidden states": (
        r"Model( architecture)? does not (support|output) (attentions|output_attentions)",
        r"Parts of this model don't support sdpa",
    ),
    "the input embeddings are a module with a convolution, as ViT's; tests/model/test_adapters.py has this test": (
        r"No model with a differentiable loss was available to verify enable_input_require_grads",
    ),
}
"""For each reason, patterns of the messages with which the tests skip themselves."""

LEFT_OUT = {
    **dict.fromkeys(
        (
            "test_hidden_states_output",
            "test_retain_grad_hidden_states_attentions",
            "test_can_capture_specific_layers_hidden_states",
        ),
        ("ResNet", "another network as the encoder gives no attention maps, and maps of its stages for hidden states"),
    ),
    "test_config": (
        "Backbone",
        "a configuration of ours names stages only where a checkpoint is used as a backbone",
    ),
    "test_call_numpy_4_channels": (
        "Processor",
        "whatever an image has, the processor makes the model's channels of it",
    ),
    "test_new_models_require_torchvision_backend": (
        "Processor",
        "our images are the same on each machine, with and without torchvision: one backend",
    ),
    "test_can_load_ignoring_mismatched_shapes": (
        "Gray48|Color32$|ResNet",
        "the label queries have a row for each class as well, which the test knows of linear layers only; "
        "tests/model/test_modeling.py loads with other classes",
    ),
}
"""Tests that are left out, each with a pattern of the classes that leave it out, and the reason."""
