"""Recipes: one published (or measured) result a file."""
