"""Runs whose metrics and weights a change of the code must leave as they are, to the bit."""

OPTIMIZERS = (
    "sgd",
    "momentum",
    "nesterov",
    "adam",
    "adamw",
    "amsgrad",
    "rmsprop",
    "adagrad",
    "nadam",
    "lion",
    "signum",
    "muon",
    "normuon",
    "sam",
    "asam",
    "grokfast",
    "lookahead",
    "shampoo",
    "soap",
    "sophia",
    "steepest",
    "lbfgs",
    "schedule_free_sgd",
    "adamw_no_decay_on_vectors",
)

RUNS = {
    **{f"optimizer {name}": f"task=digits_small optimizer={name} steps=12" for name in OPTIMIZERS},
    "task quadratic": "task=quadratic steps=40",
    "task noisy_quadratic": "task=noisy_quadratic steps=40",
    "task logistic": "task=logistic_small steps=20",
    "task deep_linear": "task=deep_linear_small steps=20",
    "task modular_addition": "task=modular_addition_small steps=10",
    "task single_index": "task=single_index_small steps=20",
    "task sparse_parity": "task=sparse_parity_small steps=20",
    "mini-batches, a schedule, clipping": (
        "task=digits_small batch_size=32 micro_batch_size=16 schedule=warmup_cosine clip_norm=1 "
        "steps=60"
    ),
    "the edge of stability": "task=digits_small optimizer.lr=0.2 steps=150",
    "label noise": "task=digits_small task.label_noise=0.2 batch_size=64 optimizer=adam steps=40",
    "probes dynamics": "task=digits_small probes=dynamics steps=20",
    "probes spectrum": "task=digits_small probes=spectrum batch_size=64 steps=20",
    "pyhessian": "task=digits_small curvature=pyhessian steps=10",
    "float64": "task=digits_small dtype=float64 steps=10",
    "model relu": "task=digits_small model=mlp_relu steps=15",
    "model cnn": "task=digits_small model=cnn_small steps=4",
}
"""What is run, by name; each is the main job's command line."""

RESUMED = {
    "resumed sgd": "task=digits_small optimizer.lr=0.2 batch_size=64 steps=400 checkpoint_seconds=.01",
    "resumed adam": "task=digits_small optimizer=adam batch_size=64 steps=400 checkpoint_seconds=.01",
}
"""Runs that are interrupted once and go on."""
