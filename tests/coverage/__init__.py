"""The coverage of the tests, counted in every process that runs our code: `make coverage`."""
