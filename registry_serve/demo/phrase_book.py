"""What the small translator learns: English sentences with their German and French translations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Phrase(NamedTuple):
    """One sentence in three languages; the fields carry the language's code."""

    en: str
    de: str
    fr: str


SENTENCES = (
    Phrase("The weather is lovely today.", "Das Wetter ist heute schön.", "Il fait beau aujourd'hui."),
    Phrase("It is raining.", "Es regnet.", "Il pleut."),
    Phrase("It is cold outside.", "Draußen ist es kalt.", "Il fait froid dehors."),
    Phrase("The sun is shining.", "Die Sonne scheint.", "Le soleil brille."),
    Phrase("Good morning.", "Guten Morgen.", "Bonjour."),
    Phrase("Good evening.", "Guten Abend.", "Bonsoir."),
    Phrase("Good night.", "Gute Nacht.", "Bonne nuit."),
    Phrase("Goodbye.", "Auf Wiedersehen.", "Au revoir."),
    Phrase("See you tomorrow.", "Bis morgen.", "À demain."),
    Phrase("Thank you very much.", "Vielen Dank.", "Merci beaucoup."),
    Phrase("You are welcome.", "Gern geschehen.", "De rien."),
    Phrase("How are you?", "Wie geht es dir?", "Comment vas-tu ?"),
    Phrase("I am fine, thank you.", "Mir geht es gut, danke.", "Je vais bien, merci."),
    Phrase("What is your name?", "Wie heißt du?", "Comment t'appelles-tu ?"),
    Phrase("Where do you live?", "Wo wohnst du?", "Où habites-tu ?"),
    Phrase("I live in Germany.", "Ich wohne in Deutschland.", "J'habite en Allemagne."),
    Phrase("I live in France.", "Ich wohne in Frankreich.", "J'habite en France."),
    Phrase("Do you speak English?", "Sprichst du Englisch?", "Parles-tu anglais ?"),
    Phrase("I do not understand.", "Ich verstehe nicht.", "Je ne comprends pas."),
    Phrase("Please speak slowly.", "Bitte sprich langsam.", "Parle lentement, s'il te plaît."),
    Phrase("I am sorry.", "Es tut mir leid.", "Je suis désolé."),
    Phrase("Can you help me?", "Kannst du mir helfen?", "Peux-tu m'aider ?"),
    Phrase("Where is the station?", "Wo ist der Bahnhof?", "Où est la gare ?"),
    Phrase("The train is late.", "Der Zug hat Verspätung.", "Le train est en retard."),
    Phrase("What time is it?", "Wie spät ist es?", "Quelle heure est-il ?"),
    Phrase("It is ten o'clock.", "Es ist zehn Uhr.", "Il est dix heures."),
    Phrase("How much does it cost?", "Wie viel kostet das?", "Combien ça coûte ?"),
    Phrase("I would like a coffee.", "Ich hätte gern einen Kaffee.", "Je voudrais un café."),
    Phrase("I would like a glass of water.", "Ich hätte gern ein Glas Wasser.", "Je voudrais un verre d'eau."),
    Phrase("The bill, please.", "Die Rechnung, bitte.", "L'addition, s'il vous plaît."),
    Phrase("The food tastes good.", "Das Essen schmeckt gut.", "Le repas est bon."),
    Phrase("I am hungry.", "Ich habe Hunger.", "J'ai faim."),
    Phrase("I am thirsty.", "Ich habe Durst.", "J'ai soif."),
    Phrase("I am tired.", "Ich bin müde.", "Je suis fatigué."),
    Phrase("I love you.", "Ich liebe dich.", "Je t'aime."),
    Phrase("The book is on the table.", "Das Buch liegt auf dem Tisch.", "Le livre est sur la table."),
    Phrase("The cat is sleeping.", "Die Katze schläft.", "Le chat dort."),
    Phrase("The dog is playing in the garden.", "Der Hund spielt im Garten.", "Le chien joue dans le jardin."),
    Phrase("The house is big.", "Das Haus ist groß.", "La maison est grande."),
    Phrase("My sister reads a book.", "Meine Schwester liest ein Buch.", "Ma sœur lit un livre."),
    Phrase("My brother works in Berlin.", "Mein Bruder arbeitet in Berlin.", "Mon frère travaille à Berlin."),
    Phrase("We are going to the cinema.", "Wir gehen ins Kino.", "Nous allons au cinéma."),
    Phrase("The children are at school.", "Die Kinder sind in der Schule.", "Les enfants sont à l'école."),
    Phrase("I am learning a language.", "Ich lerne eine Sprache.", "J'apprends une langue."),
    Phrase("He is my best friend.", "Er ist mein bester Freund.", "C'est mon meilleur ami."),
    Phrase("The museum is open today.", "Das Museum ist heute geöffnet.", "Le musée est ouvert aujourd'hui."),
    Phrase("The shop is closed.", "Das Geschäft ist geschlossen.", "Le magasin est fermé."),
    Phrase("The model is ready.", "Das Modell ist bereit.", "Le modèle est prêt."),
    Phrase("The server is running.", "Der Server läuft.", "Le serveur fonctionne."),
    Phrase("Everything works.", "Alles funktioniert.", "Tout fonctionne."),
)

NAMES = ("Jonathan", "Jon", "Hans", "Anna", "Marie", "Peter", "Sofia", "Paul", "Clara", "Lukas")

INTRODUCTIONS = tuple(
    Phrase(f"Hello my name is {name}.", f"Hallo, mein Name ist {name}.", f"Bonjour, je m'appelle {name}.")
    for name in NAMES
)

PHRASES = SENTENCES + INTRODUCTIONS


def spellings(sentence: str) -> Iterator[str]:
    """Yield the sentence, and the ways somebody in a hurry types it."""
    yield sentence
    yield sentence.rstrip(".?")
    yield sentence.rstrip(".?").lower()
