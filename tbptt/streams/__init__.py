"""Where windows come from: streams, and how they reach the device."""
