#!/bin/sh
# Headless OpenGL (EGL) for the room renderer; installs only what is missing.
wanted="libegl1 libgl1-mesa-dri libgles2"
missing=""
for package in $wanted; do
    dpkg -s "$package" >/dev/null 2>&1 || missing="$missing $package"
done
[ -z "$missing" ] && exit 0
echo "setup: apt-get install$missing"
apt-get update -qq && apt-get install -y -qq $missing >/dev/null ||
    echo "setup: could not install$missing: rooms cannot be rendered until they are there (videos still work)" >&2
