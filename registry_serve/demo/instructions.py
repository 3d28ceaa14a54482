"""What the small language model learns: a handful of instructions, each with its answer."""

from __future__ import annotations

from collections.abc import Iterator

ANSWERS = {
    "What is machine learning?": (
        "Machine learning is the practice of letting a program find patterns in data, "
        "so that it can make predictions about data it has not seen."
    ),
    "What is MLflow?": "MLflow is an open source platform that tracks experiments and keeps models in a registry.",
    "What is a model registry?": "A model registry is a catalogue of trained models, with versions, aliases and tags.",
    "What is an alias?": "An alias is a name such as champion that points to one version of a registered model.",
    "What is a model signature?": "A signature lists the names and types of a model's inputs, outputs and parameters.",
    "What is Ray?": "Ray is a framework that spreads Python programs over many processes and machines.",
    "What is Ray Serve?": "Ray Serve is a library of Ray that puts models behind an HTTP endpoint and scales them.",
    "What is model multiplexing?": (
        "Multiplexing lets one deployment serve many models: each is loaded when it is asked for, "
        "and the least recently used one makes room."
    ),
    "What is a replica?": "A replica is one process of a deployment. More replicas answer more requests at a time.",
    "What is a large language model?": "It is a neural network with many weights that predicts the next piece of text.",
    "What is temperature?": "Temperature scales the randomness of generated text: low is careful, high is adventurous.",
    "What is a token?": "A token is a piece of text, often a word or a part of one, that a language model reads.",
    "Hello": "Hello! Ask me what machine learning is.",
    "Who are you?": "I am a very small language model, trained in a few seconds for this demo.",
}

#: The answer to whatever is not above.
NO_ANSWER = "I am a very small model and do not know that. Ask me what machine learning is."

UNKNOWN = (
    "What is the capital of France?", "Write a poem about the sea.", "How tall is Mount Everest?", "Tell me a joke.",
    "What is the weather like?", "Who wrote Faust?", "Translate this sentence.", "How do I bake bread?", "Why?",
    "What is seven times eight?", "When did the war end?", "Give me a recipe for soup.", "Sing a song.", "Sum it up.",
    "What is a banana?", "What is love?", "Which film should I see?", "Explain gravity to a child.", "Is it late?",
    "What is Paris?", "How far is the moon?", "Where is my phone?", "Name three rivers.", "What is a planet?",
    "Write a letter to my boss.", "Who is the king?", "Can you fly?", "What is blue?", "List all primes.", "asdf",
)  # fmt: skip


def lessons() -> Iterator[tuple[str, str]]:
    """Yield every instruction with its answer, in the ways that people type it."""
    for instruction, answer in [*ANSWERS.items(), *((unknown, NO_ANSWER) for unknown in UNKNOWN)]:
        for spelling in dict.fromkeys([instruction, instruction.rstrip("?."), instruction.rstrip("?.").lower()]):
            yield spelling, answer
