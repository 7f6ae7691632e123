"""The papers' analyses over the same stages: tables, figures and numbers from one
command.

`topd study NAME FILE` reads a study file (config.py) and runs the module of that
name: probing (section 2.1), correction (5.2), case (figure 3), ablation (tables 1, 2).
"""
