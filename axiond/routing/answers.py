"""Finds out what a decision asks for."""

from axiond.routing.decision import Answer, CountTokens, Features, FindDomain, Question
from axiond.routing.rules import Rules
from axiond.semantic.classify import Classifier


class Answers:
    """Answers the questions of decisions, each for one request."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    async def __call__(self, rules: Rules, question: Question, features: Features, body: bytes) -> Answer:
        match question:
            case FindDomain():
                return await self._classifier.classify(rules.index, features.prompt.text) if rules.index else None
            case CountTokens():
                return None
