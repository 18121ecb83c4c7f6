"""What is measured here, what it can and cannot say, and where it comes from."""

from __future__ import annotations

import gradio as gr

from rift.ui.state import App
from rift.ui.widgets import html, join

TITLE, ORDER = "5 Learn", 5
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
        "an answer: it does not mean equal. Intervals speak of images; only several seeds speak of the training.",
    ),
)
LIMITS = """
<div class="rift"><h2>Limits</h2><ul class="limits">
<li><b>Not for clinical use.</b> This compares models on the images it is given. It diagnoses nothing.</li>
<li>RIFT may lose. Where it does, the verdict says so in the same words as where it wins.</li>
<li>The example is synthetic: drawings made by code, so that nobody's images are in it.</li>
<li>A low penalty is a brake, not proof that old abilities are intact. That is why they are measured apart.</li></ul>
<h2>Sources</h2><ul class="limits">
<li>Representation Invariance FineTuning (RIFT), arXiv 2503.07399</li>
<li>What Happens During Finetuning of Vision Transformers, arXiv 2307.06006</li>
<li>Similarity of Neural Network Representations Revisited (CKA), arXiv 1905.00414</li></ul>
<h2>Privacy</h2><p>Images, models and results stay in a folder of the machine that runs this page. The page asks no other host for
anything, counts nobody, and keeps in your browser only which images and which comparison you last looked at.</p></div>
"""


def build(app: App) -> None:
    """Fill the tab with cards; nothing in it depends on a run."""
    cards = [{"title": title, "text": text} for title, text in CARDS]
    gr.HTML(html('<div class="rift cards">{cards}</div>', cards=join("<section><h3>{title}</h3><p>{text}</p></section>", cards)))
    gr.HTML(LIMITS)
