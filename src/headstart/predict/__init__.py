"""Prediction from a model file: single images, folders and bulk prediction."""
