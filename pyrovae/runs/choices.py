"""The words that a config may have in its fields: those of the rooms that they come from, known without torch.

A test says that they are the same. `usual_settings.py` has the likelihoods.
"""

DATASETS_OF_POINTS = ("ring", "four_clusters", "pinwheel")
IMAGE_SETS = ("mnist", "fashion_mnist", "kmnist", "cifar10", "svhn", "omniglot", "sprites", "rotated_mnist")
IN_COLOUR = ("cifar10", "svhn")
DATASETS = (*DATASETS_OF_POINTS, *IMAGE_SETS, "digits")
BINARIZE = ("none", "static", "dynamic", "dequantise")
KINDS = ("continuous", "positive", "unit", "count", "binary", "category")
TEXT_FILES = (".csv", ".tsv")
NETWORKS = ("mlp", "conv", "resnet")
ACTIVATIONS = ("relu", "tanh", "softplus", "elu", "gelu", "silu", "leaky_relu")
POSTERIORS = ("diagonal", "full_covariance", "flow", "mixture", "bernoulli", "relaxed_bernoulli", "delta")
PRIORS = ("standard", "mixture", "vamp", "flow")
OBJECTIVE_NAMES = (
    *("elbo", "elbo_analytic_kl", "elbo_enumerated", "sticking_the_landing", "iwae", "dreg", "gdreg", "renyi"),
    *("miwae", "piwae", "ciwae", "siwae", "miselbo", "reweighted_wake_sleep", "vimco", "ovis", "score_function"),
    "thermodynamic",
)
SHORTHANDS = ("num_particles", "alpha", "num_batches", "free_bits")  # settings of objectives that are fields, too
MAX_STATES = 2**16  # of a latent variable that is summed over
LEARNING_RATE_SCHEDULES = ("constant", "cosine")
BETA_SCHEDULES = ("constant", "linear", "cyclical", "sigmoid")
NONFINITE = ("stop", "skip")
TRAIN = ("both", "model", "guide")
