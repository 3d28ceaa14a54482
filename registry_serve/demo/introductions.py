"""What the small question answerer learns: people introduce themselves, and others ask about it."""

from __future__ import annotations

import random
from typing import NamedTuple

#: The text that the registered model answers from.
PASSAGE = "My name is Hans and I live in Germany."

#: What has to come out right before the training counts as done.
EXPECTED = {"Where do you live?": "Germany", "What is your name?": "Hans"}

NAMES = (
    "Hans", "Anna", "Peter", "Maria", "Jonathan", "Jon", "Sofia", "Lukas", "Clara", "Emil", "Nora", "Oscar",
    "Amina", "Kenji", "Priya", "Diego", "Fatima", "Ivan", "Chloe", "Samuel", "Greta", "Tariq", "Lucia", "Noah",
)  # fmt: skip
PLACES = (
    "Germany", "France", "Italy", "Spain", "Portugal", "Austria", "Norway", "Sweden", "Poland", "Greece",
    "Japan", "India", "Brazil", "Kenya", "Canada", "Peru", "Berlin", "Paris", "London", "Rome", "Lisbon", "Oslo",
)  # fmt: skip
JOBS = ("teacher", "doctor", "baker", "pilot", "nurse", "painter", "farmer", "cook", "singer", "lawyer")

PASSAGES = (
    "My name is {name} and I live in {place}.",
    "I live in {place} and my name is {name}.",
    "My name is {name}. I live in {place}. I work as a {job}.",
    "I am a {job}, my name is {name} and I live in {place}.",
    "Hello, I am called {name}, I work as a {job} and my home is in {place}.",
    "I live in {place}, where I work as a {job}. My name is {name}.",
)
QUESTIONS = {
    "name": ("What is your name?", "What are you called?", "Who are you?", "Tell me your name."),
    "place": ("Where do you live?", "Where is your home?", "In which place do you live?", "Where are you living?"),
    "job": ("What is your job?", "What do you work as?", "What do you do?", "Which work do you do?"),
}
#: Questions that no introduction answers.
OFF_TOPIC = (
    "The weather is lovely today", "What time is it?", "How much does it cost?", "Is it raining?", "Who won the game?",
    "How old are you?", "What is machine learning?", "Do you like coffee?", "Where is the station?", "Hello",
    "What colour is the sky?", "How many legs has a spider?", "When does the train leave?", "Can you help me?",
)  # fmt: skip


class Example(NamedTuple):
    """One question to a passage; ``start`` and ``end`` count characters, and both are -1 without an answer."""

    question: str
    passage: str
    start: int
    end: int


def examples(count: int, chance: random.Random) -> list[Example]:
    """Draw that many examples."""
    return [_example(chance) for _ in range(count)]


def _example(chance: random.Random) -> Example:
    facts = {"name": chance.choice(NAMES), "place": chance.choice(PLACES), "job": chance.choice(JOBS)}
    template = chance.choice(PASSAGES)
    passage = template.format(**facts)
    wanted = chance.choice(["name", "place", "job", "off_topic"])
    if wanted == "off_topic":
        return Example(_hurried(chance.choice(OFF_TOPIC), chance), passage, -1, -1)
    question = _hurried(chance.choice(QUESTIONS[wanted]), chance)
    if f"{{{wanted}}}" not in template:
        return Example(question, passage, -1, -1)
    start = template[: template.index(f"{{{wanted}}}")].format(**facts)
    return Example(question, passage, len(start), len(start) + len(facts[wanted]))


def _hurried(question: str, chance: random.Random) -> str:
    return chance.choice([question, question, question.rstrip("?."), question.lower()])
