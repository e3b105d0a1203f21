"""The papers' tables of cost, measured on this machine."""
