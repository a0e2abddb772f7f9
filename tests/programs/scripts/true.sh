# What it costs to run anything at all.
true
