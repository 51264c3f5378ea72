"""Experiments that explain a method: a known world in place of a learned one."""
