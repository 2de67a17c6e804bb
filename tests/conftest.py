"""CPU settings for every test, before anything imports Paddle."""

from common.environment import tune_cpu

tune_cpu()
