"""What `clientlb.httpx` and `clientlb.httpx2` share: everything but the classes of the two libraries.

hosts       which hosts are services
verdict     what a status, a Retry-After and an exception say about an endpoint
message     the copy of a request that goes to an endpoint; what of a request can be repeated
body        streams that notice how a body ends
timeouts    the time that an attempt has left, and a way to end it before that
streams     the connections, which keep to that time
direct      what carries an attempt to one endpoint
links       one transport per endpoint: taken, given back, retired. No I/O
flavour     the classes of httpx or of httpx2
exchange    one logical request, as the loops of `clientlb.drive` want it
shell       the transports: a thin sync and a thin async one
client      an ordinary client whose services are balanced
"""
