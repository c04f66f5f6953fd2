"""deploy-runner: a content-addressed build system whose artifacts are models."""
