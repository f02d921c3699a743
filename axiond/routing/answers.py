"""Finds out what a decision asks for."""

from axiond.routing.count import TokenCounter
from axiond.routing.decision import Answer, CountTokens, Features, FindDomain, Question
from axiond.routing.rules import Rules
from axiond.semantic.classify import Classifier


class Answers:
    """Answers the questions of decisions, each for one request; without a *counter* estimates have to do."""

    def __init__(self, classifier: Classifier, counter: TokenCounter | None = None) -> None:
        self._classifier, self._counter = classifier, counter

    async def __call__(self, rules: Rules, question: Question, features: Features, body: bytes) -> Answer:
        match question:
            case FindDomain():
                return await self._classifier.classify(rules.index, features.prompt.text) if rules.index else None
            case CountTokens(model):
                return await self._counter.count(model, body) if self._counter else None
