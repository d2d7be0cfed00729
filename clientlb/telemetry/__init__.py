"""Be seen: event hooks and metric sinks, one file per place where figures and facts go. Import what you need.

General layout: `logging` writes events to the standard library's logging, `prometheus` (extra `prometheus`) exposes
metrics. Nothing here is on the path of a call: figures are read when somebody looks, events are rare.
"""
