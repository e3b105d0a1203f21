"""The loop, and the two kinds of run that go through it: supervised and masked."""
