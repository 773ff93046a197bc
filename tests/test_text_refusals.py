import pytest

from rbalign.text.refusals import is_boilerplate, refuses


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't do that for you.",
        "I’m sorry for your lost bookstore, but I’m unable to assist with that currently.",
        "I'm afraid I'm unable to find a library with such books.",
        "As an AI language model, I have no feelings.",
        "I'm an AI assistant specialized in games.",
        "I cannot provide medical advice.",
        "I am not able to help with this.",
        "I'd be happy to. But I can't provide a crash course.",
    ],
)
def test_refusals_are_found(answer):
    assert refuses(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry to hear that. Try some warm tea and rest.",
        "You can't mix bleach and vinegar: the gas is poisonous.",
        "If you are unable to sleep, read a book.",
        "AI is the study of machines that learn.",
        "I can help you with that. What is your budget?",
        "A sorry sight, he said, and could not go on.",
    ],
)
def test_help_is_no_refusal(answer):
    assert not refuses(answer)


@pytest.mark.parametrize(
    "instruction",
    [
        "How can I help you today?",
        "Hey there, how can I assist you today? I'm Max, a blacksmith.",
        "Hello! I'm here to help with the plan.",
        "Sure, here is a list of books.",
        "As an AI, I do not have opinions.",
    ],
)
def test_an_assistants_words_are_no_request(instruction):
    assert is_boilerplate(instruction)


@pytest.mark.parametrize(
    "instruction",
    [
        "How can I help my son with his homework?",
        "I'm here in Paris for two days. What should I see?",
        "What can I do for my back pain?",
        "Can you explain what an AI is?",
        "Hello, can you tell me about Rome?",
        "I'm sure he is right. How do I tell him?",
    ],
)
def test_requests_are_kept(instruction):
    assert not is_boilerplate(instruction)
