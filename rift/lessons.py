"""The words of the Learn tab: cards, glossary, limits, where everything comes from, and a plan for an hour with a class."""

from __future__ import annotations

from typing import NamedTuple

CARDS = (
    (
        "What finetuning does",
        "A model that has seen millions of everyday photos is trained on a few hundred medical images. It learns them, and "
        "on the way its picture of the world moves. Nothing in the medical loss asks it to remember.",
    ),
    (
        "What RIFT adds",
        "A penalty: the covariance of the model's embeddings should stay as it was, up to a rotation. Images then keep their "
        "arrangement to each other. The paper is arXiv 2503.07399; its full text and code were not at hand, so the reading is "
        "ours, and each place where we chose is named in the help of the regularizer.",
    ),
    (
        "Similarity: CKA",
        "1 means that the finetuned model arranges the same images in the same way as the pretrained one, rotation and scale "
        "aside; about 0 means unrelated. It does not say that predictions are right. The debiased one is shown, because the "
        "plain one is high by chance when images are few.",
    ),
    (
        "PCA",
        "A shadow of the embeddings in two dimensions, the same basis and axes for every model. Much of the spread is lost, so "
        "distances can mislead; the axes say how much is left.",
    ),
    (
        "Zero-shot",
        "Can the model still name everyday things that finetuning never showed it? Here the word means predicted from text, "
        "never trained on during finetuning. The embedded model saw photos of 200 of its 1000 names when it was made.",
    ),
    (
        "Is a difference real?",
        "With 20 test images, one image is five points. Every number has its n and its interval, and 'not distinguishable' is "
        "an answer: it does not mean equal. One seed speaks of two runs, two of nothing; three or more speak of the methods.",
    ),
)

GLOSSARY = {
    "Arm": "One way to finetune, trained beside others on the same images in the same order; only one thing differs.",
    "Backbone": "The pretrained model that turns an image into an embedding: here a Vision Transformer.",
    "Balanced accuracy": "The mean over classes of the share named rightly, so a frequent class counts no more than a rare one.",
    "CKA": "Centered kernel alignment: how alike two models arrange the same images, from about 0 to 1.",
    "CKA, debiased": "CKA without the part that chance adds when images are few; it can fall a little below 0.",
    "Drift": "How far the finetuned model's view of images has moved from the pretrained one's.",
    "Embedding": "The list of numbers that a model makes of an image; alike images should get alike lists.",
    "Epoch": "One pass over all training images; it is cut into steps of one batch each.",
    "Few shots": "Training on so many images of each class only.",
    "Finetuning": "Training a pretrained model further, on other images than those it was made from.",
    "Head": "The last layer, which turns an embedding into classes; it starts anew with every run.",
    "Interval, 95 %": "Of 100 such ranges, 95 hold the true value; a wide one says: too few images.",
    "Learning rate": "How large a step the weights take; too large forgets or diverges, too small learns nothing.",
    "Natural images": "Everyday photos that no arm is trained on: what must not be forgotten.",
    "Not distinguishable": "The interval holds 0, or the adjusted p-value is above 0.05. It does not mean equal.",
    "p-value, adjusted": "How often chance alone would show such a difference, raised for the number of questions asked (Holm).",
    "PCA": "The directions in which embeddings spread most; two of them make a picture.",
    "Penalty": "What is added to the loss so that the model keeps something; also called regularizer.",
    "Seed": "The number that all chance in a run starts from; the same seed gives the same run.",
    "Strength λ": "The weight of the penalty: 0 is ordinary finetuning.",
    "Test images": "Images that nothing was trained on or chosen by; all final numbers are of them.",
    "Trade-off": "What an arm can do against what it kept; the front holds the arms that no other one beats in both.",
    "Validation images": "Images that are looked at while training; settings may be chosen on them, never on test images.",
    "Zero-shot": "Naming things from text alone, without having been trained to name them in finetuning.",
}

LIMITS = (
    ("Not for clinical use.", "This compares models on the images it is given. It diagnoses nothing."),
    ("RIFT may lose.", "Where it does, the verdict says so in the same words as where it wins."),
    ("The example is synthetic:", "drawings made by code, so that nobody's images are in it."),
    ("A low penalty is a brake,", "not proof that old abilities are intact. That is why they are measured apart."),
    (
        "The exercises are small:",
        "one seed, a few epochs, dozens of test images. They show how to look, and settle nothing about a method.",
    ),
)

LESSON = (
    "A lesson of 60 minutes. Ten minutes: the example's Verdict and PCA, and the question what a model could forget. Fifteen: "
    "everybody writes down a prediction for 'Ten times the learning rate', starts it, and reads the six ideas meanwhile. "
    "Fifteen: compare predictions with what the runs say; where the class disagrees, read the interval aloud. Fifteen: groups "
    "take one of the other three exercises each; the shuffled labels last, for the lesson that keeping is not learning. Five: "
    "what would it take to speak of methods instead of runs? (Seeds, more images, patients kept together.) On two cores the "
    "first exercise takes a few minutes and the others less, since the unbroken runs are shared; a lab that trained them before "
    "opens them at once."
)


class Source(NamedTuple):
    """A paper, a set of images or a library: what it is, and its place or license."""

    name: str
    about: str


PAPERS = (
    Source("Representation Invariance FineTuning (RIFT)", "arXiv 2503.07399"),
    Source("What Happens During Finetuning of Vision Transformers", "arXiv 2307.06006"),
    Source("Similarity of Neural Network Representations Revisited (CKA)", "arXiv 1905.00414"),
    Source("Reliability of CKA as a Similarity Measure", "arXiv 2210.16156"),
    Source("Measuring Representational Robustness (STIR)", "arXiv 2206.11939"),
    Source("An Image is Worth 16x16 Words (Vision Transformer)", "arXiv 2010.11929"),
    Source("Learning Transferable Visual Models From Natural Language Supervision (CLIP)", "arXiv 2103.00020"),
    Source("Fine-Tuning can Distort Pretrained Features", "arXiv 2202.10054"),
    Source("Robust fine-tuning of zero-shot models", "arXiv 2109.01903"),
)
DATA = (
    Source("Phantoms, the sample", "drawn by code of this app; no patient"),
    Source("The bundled photos", "from scikit-image, scikit-learn and Gradio; the licenses of their packages and authors"),
    Source("The embedded model", "made by us from photos of Tiny ImageNet and CIFAR-10 and a timm teacher; see assets/README.md"),
    Source("CIFAR-10, on request", "Krizhevsky 2009; no license known to us, its author asks to be cited"),
    Source("Oxford Flowers 102, on request", "Nilsback and Zisserman 2008; no license known to us, cite its authors"),
    Source("Oxford-IIIT Pets, on request", "Parkhi 2012; CC BY-SA 4.0, as far as we recall"),
)
LIBRARIES = {  # by the name in requirements.txt, as the installed packages say
    "torch": "BSD-3-Clause and others",
    "torchvision": "BSD",
    "timm": "Apache-2.0",
    "open_clip_torch": "MIT",
    "peft": "Apache-2.0",
    "huggingface_hub": "Apache-2.0",
    "safetensors": "Apache-2.0",
    "numpy": "BSD-3-Clause and others",
    "scipy": "BSD",
    "scikit-learn": "BSD-3-Clause",
    "scikit-image": "BSD",
    "confusable-homoglyphs": "MIT",
    "pillow": "MIT-CMU",
    "pydicom": "MIT",
    "pylibjpeg": "MIT",
    "pylibjpeg-openjpeg": "MIT",
    "python-gdcm": "Apache-2.0",
    "pydantic": "MIT",
    "typer": "MIT",
    "plotly": "MIT",
    "jinja2": "BSD",
    "markupsafe": "BSD-3-Clause",
    "filelock": "MIT",
    "itsdangerous": "BSD",
    "gradio": "Apache-2.0",
}
