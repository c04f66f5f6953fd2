"""How `push.oci` talks to a registry, and what it puts there."""
