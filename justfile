# SPDX-License-Identifier: Apache-2.0
# The front door; every recipe is one call of build/dev.

# List the recipes.
default:
    @just --list

# Packages and the Python environment.
deps:
    build/dev deps

# Objects and the extension, in place.
build:
    build/dev build

# What is generated and committed: ABI, CRDs, reference pages.
gen:
    build/dev gen

# Fail when abi.py is not what the objects say.
gen-check: build
    build/out/venv/bin/python build/gen_abi.py --check

# Test layers; all of them without arguments.
test *layers:
    build/dev test {{ layers }}

# Formatters, types, layer contracts, licences, reproducible objects.
lint:
    build/dev lint

# Rewrite Python and C in the house style.
format:
    build/dev format

# Pure tests, seconds.
unit:
    build/dev test unit

# Objects in, tables and maps out.
stories:
    build/dev test stories

# Laws on generated cases.
property:
    build/dev test property

# Programs over single packets.
datapath:
    build/dev test datapath

# Real sockets in network namespaces.
netns:
    build/dev test netns

# An agent that is killed, refused and lied to; --long for every step.
faults *arguments:
    build/dev test {{ arguments }} faults

# The oldest, the stable and the newest kernel of Debian, in qemu; --long for all of datapath and netns, --kernel for one.
kernels *arguments:
    build/dev test {{ arguments }} kernels

# Mistakes in what decides about packets: that each can be made; --long makes them and runs the tests that find them.
mutants *arguments:
    build/dev test {{ arguments }} mutants

# A real API server with our kinds, agent sources and operator.
api:
    build/dev test api

# What the real helm makes of the chart.
chart:
    build/dev test chart

# A real cluster: image, chart, traffic, restarts, upstream specs, uninstall.
e2e *arguments:
    build/dev test {{ arguments }} e2e

# The image, from the Dockerfile.
image:
    build/dev image

# Wheel, image, chart, bill of materials and checksums of this commit; --trial to look at.
release *arguments:
    build/dev release {{ arguments }}

# Resolve Python dependencies anew.
lock:
    build/dev lock

# Two nodes of Kubernetes on this machine; --standalone for a node without.
demo *arguments:
    build/dev demo {{ arguments }}

# Take down what `just demo --keep` left.
down:
    build/dev down

# Benchmarks.
bench *arguments:
    build/dev bench {{ arguments }}

# What CI runs.
ci:
    .ci/run
