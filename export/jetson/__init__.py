"""One folder that builds, gates and times the student on a Jetson, with nothing but what JetPack
brings."""
