"""Programs that measure tffed and write the figures down."""
