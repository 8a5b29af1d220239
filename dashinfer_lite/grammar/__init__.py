"""Grammars: what an answer must look like becomes a mask over tokens, with the library llguidance.

Importing the room loads no third-party module; llguidance is imported when the first guided request comes.
"""
