"""A student in the files that other runtimes load, each behind one quality gate (`agreement.QualityGate`).

`layout` says where the files lie in the student's folder.
"""
