"""The few files that run beside customers' code: a zygote that forks workers, and what a worker does.

Imports the standard library, msgspec, cloudpickle, blake3, fallow.model and fallow.wire's page and code only: that
is what every environment is guaranteed to hold.
"""
