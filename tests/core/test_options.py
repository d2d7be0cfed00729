"""Options: every bad value is refused where it is given, by name."""

import dataclasses

import pytest
from tenacity import stop_after_attempt

from clientlb import (
    BudgetOptions,
    CallOptions,
    ConfigurationError,
    GrpcCheck,
    GuardOptions,
    HealthOptions,
    HttpCheck,
    Options,
    Outcome,
    OutlierOptions,
    RatioOptions,
    RetryOptions,
    Services,
    SlowOptions,
    TcpCheck,
    load_options,
)
from clientlb.backoff import full_jitter
from clientlb.policy import POLICIES, LeastTime, make_policy


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Options(policy="fastest"), "policy 'fastest' does not exist; known: least_time"),
        (lambda: Options(policy=3), "policy is 3"),
        (lambda: Options(wait_for_endpoints=-1), "wait_for_endpoints is -1; give a number at least 0"),
        (lambda: Options(wait_for_endpoints=float("nan")), "wait_for_endpoints is nan"),
        (lambda: GuardOptions(empty_hold="60"), "guard.empty_hold is '60'"),
        (lambda: GuardOptions(hold=-1), "guard.hold is -1; give a number at least 0"),
        (lambda: GuardOptions(settle=None), "guard.settle is None"),
        (lambda: GuardOptions(keep_ratio=50), "guard.keep_ratio is 50; give a number at least 0 and at most 1"),
        (lambda: Options(guard=30), r"guard is 30; give GuardOptions\(...\)"),
        (lambda: Options(health={"open_for": 1}), "give HealthOptions"),
        (lambda: Options(retry=3), "give RetryOptions"),
        (lambda: HealthOptions(consecutive_failures=0), "consecutive_failures is 0; give a whole number, at least 1"),
        (lambda: HealthOptions(consecutive_failures=2.5), "consecutive_failures is 2.5"),
        (lambda: HealthOptions(open_for=0), "open_for is 0; give a number above 0"),
        (lambda: HealthOptions(open_for=10, open_for_max=5), "open_for_max is 5; give a number at least 10"),
        (lambda: HealthOptions(probe_timeout=-1), "probe_timeout"),
        (
            lambda: HealthOptions(check="/healthz"),
            r"check is '/healthz'; give HttpCheck or TcpCheck or GrpcCheck\(...\)",
        ),
        (lambda: HealthOptions(dry_run={"checks"}), "dry_run has 'checks'; give names of rules: .*, check"),
        (lambda: TcpCheck(interval=0), "health.check.interval is 0; give a number at least 0.05"),
        (lambda: TcpCheck(jitter=2), "health.check.jitter is 2; give a number at least 0 and at most 1"),
        (lambda: TcpCheck(timeout=0), "health.check.timeout is 0; give a number above 0"),
        (lambda: TcpCheck(unhealthy=0), "health.check.unhealthy is 0; give a whole number, at least 1"),
        (lambda: TcpCheck(healthy=0), "health.check.healthy is 0"),
        (lambda: TcpCheck(port=70000), "health.check.port is 70000; give a number at most 65535"),
        (lambda: HttpCheck("healthz"), "health.check.path is 'healthz'; give one that starts with a /"),
        (lambda: HttpCheck("/a b"), "health.check.path is '/a b'"),
        (lambda: HttpCheck("/a\r\nX: y"), "health.check.path is '/a.r.nX: y'"),
        (lambda: HttpCheck(method="GET /"), "health.check.method is 'GET /'; give the name of an HTTP method"),
        (lambda: HttpCheck(statuses={100}), "health.check.statuses has 100; give HTTP status codes, 200 to 599"),
        (lambda: HttpCheck(headers=["a"]), "health.check.headers is .*; give a mapping"),
        (lambda: HttpCheck(headers={"host": "a"}), "health.check.headers has 'host'; .* server_name for Host"),
        (lambda: HttpCheck(headers={"A": "b\nC: d"}), "health.check.headers: the value of A is no line of ASCII text"),
        (lambda: HttpCheck(secure="yes"), "health.check.secure is 'yes'; give True or False"),
        (lambda: HttpCheck(server_name="a b"), "health.check.server_name is 'a b'; give a host name"),
        (lambda: HttpCheck(verify="/no/such/file"), "health.check.verify is '/no/such/file'; there is no such file"),
        (lambda: HttpCheck(verify=3), "health.check.verify is 3; give True, False, a path or an ssl.SSLContext"),
        (lambda: GrpcCheck(watch=1), "health.check.watch is 1; give True or False"),
        (lambda: GrpcCheck(name=None), "health.check.name is None; give the full name of a gRPC service"),
        (lambda: BudgetOptions(ratio=-0.1), "ratio is -0.1; give a number at least 0 and at most 1000"),
        (lambda: BudgetOptions(window=0.5), "window"),
        (lambda: BudgetOptions(reserve=True), "reserve is True"),
        (lambda: RetryOptions(stop=3), "retry.stop is 3; give a tenacity"),
        (lambda: RetryOptions(wait=0.1), "retry.wait is 0.1; give a tenacity"),
        (lambda: RetryOptions(stop=stop_after_attempt), "retry.stop is <class"),
        (lambda: RetryOptions(statuses=frozenset({5030})), "retry.statuses has 5030; give HTTP status codes"),
        (lambda: RetryOptions(statuses=503), "retry.statuses is 503; give a set of HTTP status codes, 100 to 599"),
        (lambda: RetryOptions(statuses="503"), "retry.statuses is '503'; give a set of"),
        (lambda: RetryOptions(statuses=["503"]), "retry.statuses has '503'"),
        (lambda: RetryOptions(statuses=[[1]]), r"retry.statuses has \[1\]"),
        (lambda: RetryOptions(statuses={503: "busy"}), "retry.statuses is {503: 'busy'}"),
        (lambda: RetryOptions(methods="GET"), "retry.methods is 'GET'; give a set of names of HTTP methods"),
        (lambda: RetryOptions(methods=None), "retry.methods is None"),
        (lambda: RetryOptions(methods=[1]), "retry.methods has 1; give names of HTTP methods"),
        (lambda: RetryOptions(codes="UNAVAILABLE"), "retry.codes is 'UNAVAILABLE'; give a set of names of gRPC"),
        (lambda: RetryOptions(codes=14), "retry.codes is 14"),
        (lambda: RetryOptions(codes=[14]), "retry.codes has 14; give names of gRPC status codes"),
        (lambda: RetryOptions(budget=None), r"retry.budget is None; give BudgetOptions\(...\)"),
        (lambda: RetryOptions(budget=0.2), "retry.budget is 0.2; give BudgetOptions"),
        (lambda: Options(wait_for_endpoints=10**400), "wait_for_endpoints is 1000"),
        (lambda: make_policy(lambda: 5), "policy <function .* made 5; give a callable that makes a Policy"),
        (
            lambda: Services("static://h:1", options=Options(policy=lambda: None))["orders"],
            "made None; give a callable",
        ),
        (lambda: CallOptions(idempotent="yes"), "idempotent is 'yes'"),
        (lambda: CallOptions(retry=3), "retry is 3"),
        (
            lambda: CallOptions.of({"idempotant": True}),
            "call options idempotant do not exist; known: attempt_timeout, deadline, idempotent, key, retry, where",
        ),
        (lambda: CallOptions.of([1]), "give a mapping"),
        (lambda: CallOptions(key=1.5), "the key of a call is a float"),
        (lambda: CallOptions(key=True), "the key of a call is a bool"),
        (lambda: CallOptions(where={"version": 2}), "where is {'version': 2}"),
        (lambda: CallOptions(where="version"), "where is 'version'"),
        (lambda: LeastTime(decay=0), "decay is 0"),
        (lambda: LeastTime(failure_factor=0.5), "failure_factor is 0.5"),
        (lambda: Services("static://h:1", options={"orders": 3}), r"options\['orders'\] is 3"),
        (lambda: Services("static://h:1", options="fast"), "options is 'fast'"),
    ],
)
def test_bad_value_is_named(make, text):
    with pytest.raises(ConfigurationError, match=text):
        make()


def test_call_options_decide_over_the_service():
    service = RetryOptions()
    own = RetryOptions(stop=stop_after_attempt(9))
    assert CallOptions().retry_options(service) is service
    assert CallOptions(retry=own).retry_options(service) is own


def test_a_call_without_retries_keeps_what_else_the_service_has():
    service = RetryOptions(methods={"GET"}, statuses={500}, codes={"ABORTED"}, budget=BudgetOptions(ratio=0.5))
    none = CallOptions(retry=False).retry_options(service)
    assert (none.stop.max_attempt_number, none.transparent) == (1, 0)
    assert (none.methods, none.statuses, none.codes) == ({"GET"}, {500}, {"ABORTED"})
    assert (none.budget, none.wait) == (service.budget, service.wait)


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
def test_collections_are_frozen(kind):
    options = RetryOptions(methods=kind(["GET"]), statuses=kind([500, 503]), codes=kind(["ABORTED"]))
    assert (options.methods, options.statuses, options.codes) == ({"GET"}, {500, 503}, {"ABORTED"})
    assert {type(options.methods), type(options.statuses), type(options.codes)} == {frozenset}


def test_every_policy_name_makes_a_policy():
    for name in POLICIES:
        assert callable(make_policy(name).choose)


def test_file_and_environment_feed_the_same_classes(tmp_path):
    path = tmp_path / "options.toml"
    path.write_text(
        """
        [default]
        policy = "p2c"
        [default.health]
        consecutive_failures = 3
        [services.orders]
        wait_for_endpoints = 1.5
        [services.orders.retry]
        attempts = 5
        backoff = 0.05
        statuses = [503]
        [services.orders.retry.budget]
        ratio = 0.1
        """
    )
    environ = {"CLIENTLB_CONFIG": str(path), "CLIENTLB_GUARD__EMPTY_HOLD": "7.5", "CLIENTLB_HEALTH__OPEN_FOR": "2"}
    loaded = load_options(environ=environ)
    assert loaded["*"] == Options(
        policy="p2c",
        guard=GuardOptions(empty_hold=7.5),
        health=HealthOptions(consecutive_failures=3, open_for=2),
        retry=loaded["*"].retry,
    )
    orders = loaded["orders"]
    assert (orders.policy, orders.wait_for_endpoints, orders.guard.empty_hold) == ("p2c", 1.5, 7.5)
    assert orders.retry.stop.max_attempt_number == 5
    assert isinstance(orders.retry.wait, full_jitter)
    assert (orders.retry.wait.initial, orders.retry.wait.max) == (0.05, 0.25)
    assert orders.retry.statuses == {503}
    assert orders.retry.budget == BudgetOptions(ratio=0.1)
    services = Services("static://h:1", options=loaded)
    assert services["orders"].options is orders
    assert services["users"].options is loaded["*"]


def test_checks_in_a_file_and_in_variables(tmp_path):
    path = tmp_path / "options.toml"
    path.write_text(
        """
        [default.health.check]
        kind = "http"
        path = "/healthz"
        statuses = [200, 204]
        headers = { X-From = "clientlb" }
        [services.orders.health.check]
        interval = 1
        [services.users.health.check]
        kind = "tcp"
        [services.mail.health]
        check = false
        """
    )
    loaded = load_options(path, environ={})
    check = HttpCheck("/healthz", statuses={200, 204}, headers={"X-From": "clientlb"})
    assert loaded["*"].health.check == check
    assert loaded["orders"].health.check == dataclasses.replace(check, interval=1)
    assert loaded["users"].health.check == TcpCheck()
    assert loaded["mail"].health.check is None
    environ = {"CLIENTLB_HEALTH__CHECK__KIND": "grpc", "CLIENTLB_HEALTH__CHECK__NAME": "shop.Orders"}
    assert load_options(environ=environ)["*"].health.check == GrpcCheck(name="shop.Orders")


def test_the_rules_of_health_have_tables_of_their_own(tmp_path):
    path = tmp_path / "options.toml"
    path.write_text(
        """
        [default.health.ratio]
        success = 0.9
        calls = 20
        [default.health.outlier]
        enabled = false
        [services.orders.health]
        dry_run = ["slow"]
        [services.orders.health.ratio]
        calls = 5
        [services.orders.health.outlier]
        enabled = true
        deviations = 3
        [services.orders.health.slow]
        enabled = true
        factor = 5
        """
    )
    environ = {"CLIENTLB_HEALTH__RATIO__WINDOW": "5", "CLIENTLB_HEALTH__SLOW__CALLS": "50"}
    loaded = load_options(path, environ)
    assert loaded["*"].health == HealthOptions(
        ratio=RatioOptions(success=0.9, calls=20, window=5),
        outlier=OutlierOptions(enabled=False),
        slow=SlowOptions(calls=50),
    )
    assert loaded["orders"].health == HealthOptions(
        ratio=RatioOptions(success=0.9, calls=5, window=5),
        outlier=OutlierOptions(deviations=3),
        slow=SlowOptions(enabled=True, factor=5, calls=50),
        dry_run={"slow"},
    )


def test_the_rules_of_a_file_reach_the_balancer(tmp_path):
    path = tmp_path / "options.toml"
    path.write_text("[services.orders.health.ratio]\ncalls = 3\n[services.users.health.ratio]\nenabled = false")
    services = Services("static://h:1,h:2,h:3", options=load_options(path, environ={}))
    healthy = {}
    for service in ("orders", "users"):
        balancer = services[service]
        failing = balancer.pick().node
        for ok in (False, True, False, False):
            with balancer.try_pick([node for node in balancer.nodes if node is not failing]) as pick:
                pick.observe(Outcome.SUCCESS if ok else Outcome.FAILURE)
        healthy[service] = balancer.stats().healthy
    services.close()
    assert healthy == {"orders": 2, "users": 3}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[default]\npolicy = 'fastest'", "in default: policy 'fastest' does not exist"),
        ("[default.retry]\nattempts = 0", "default.retry.attempts is 0"),
        ("[default.retry]\nbackoff = -1", "default.retry.backoff is -1"),
        ("[default]\ntimeout = 3", "default.timeout does not exist; known: attempt_timeout, deadline"),
        ("[services.orders.health]\nopen_for = 0", "in services.orders.health: health.open_for is 0"),
        ("[default.health.check]\npath = '/'", "default.health.check.kind is None; give one of http, tcp, grpc"),
        ("[default.health]\ncheck = true", "default.health.check is True; give a table"),
        (
            "[default.health.check]\nkind = 'tcp'\npath = '/'",
            "default.health.check.path does not exist; known: healthy",
        ),
        ("[default.health.check]\nkind = 'http'\npath = 'x'", "in default.health.check: health.check.path is 'x'"),
        ("[service.orders]", r"\[service\] is neither"),
        ("[default.guard]\nkeep = 3", "default.guard.keep does not exist; known: empty_hold, hold, keep_ratio, settle"),
        ("[default]\nhealth = 3", "default.health is 3; give a table"),
        ("default = 3", "default is 3; give a table"),
        ("services = 3", "services is 3; give a table"),
        ("[services]\norders = 3", "services.orders is 3; give a table"),
        ("[default]\npolicy = ['p2c']", r"in default: policy is \['p2c'\]"),
        ("[default.retry]\nstatuses = 503", "in default.retry: retry.statuses is 503; give a set of HTTP status codes"),
        ("[default.retry]\nstatuses = [[1]]", r"in default.retry: retry.statuses has \[1\]"),
        ("[default.retry]\nmethods = 'GET'", "retry.methods is 'GET'; give a set of"),
        ("[default.retry]\ncodes = [14]", "retry.codes has 14"),
        ("[default.retry]\nbudget = 0.2", "default.retry.budget is 0.2; give a table"),
        ("[default.retry]\nbackoff = 'short'", "default.retry.backoff is 'short'"),
        ("[default.retry]\nstop = 3", "default.retry.stop does not exist; known: attempts, avoid"),
        ("not toml", "options file"),
        (
            "[services.orders.health.ratio]\nsuccess = 2",
            "in services.orders.health.ratio: health.ratio.success is 2; give a number above 0 and at most 1",
        ),
        ("[default.health.ratio]\nwindow = 60", "health.ratio.window is 60; give a number at least 1 and at most 10"),
        ("[default.health.ratio]\ncalls = 2.5", "health.ratio.calls is 2.5; give a whole number, at least 1"),
        (
            "[default.health.ratio]\nenabled = 'no'",
            "in default.health.ratio: health.ratio.enabled is 'no'; give True or False",
        ),
        (
            "[services.orders.health.outlier]\nendpoints = 1",
            "in services.orders.health.outlier: health.outlier.endpoints is 1; give a whole number, at least 2",
        ),
        ("[default.health.outlier]\ndeviations = -1", "health.outlier.deviations is -1; give a number at least 0"),
        ("[default.health.outlier]\nopen_for = 0", "health.outlier.open_for is 0; give a number above 0"),
        (
            "[default.health.outlier]\nstdev = 2",
            "default.health.outlier.stdev does not exist; known: calls, deviations, enabled, endpoints, fail",
        ),
        (
            "[services.orders.health.slow]\nfactor = 0.5",
            "in services.orders.health.slow: health.slow.factor is 0.5; give a number at least 1",
        ),
        ("[default.health.slow]\nquantile = 95", "health.slow.quantile is 95; give a number above 0 and at most 1"),
        ("[default.health]\nslow = true", "default.health.slow is True; give a table"),
        ("[services.orders.health]\nratio = 0.8", "services.orders.health.ratio is 0.8; give a table"),
        (
            "[services.orders.health]\ndry_run = ['outliers']",
            "in services.orders.health: health.dry_run has 'outliers'; give names of rules: consecutive, connect",
        ),
    ],
)
def test_bad_file_is_named(tmp_path, text, complaint):
    path = tmp_path / "options.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=complaint):
        load_options(path, environ={})


@pytest.mark.parametrize(
    ("environ", "complaint"),
    [
        (
            {"CLIENTLB_RETRY": "x", "CLIENTLB_RETRY__ATTEMPTS": "5"},
            "CLIENTLB_RETRY is 'x', so CLIENTLB_RETRY__ATTEMPTS has no place",
        ),
        (
            {"CLIENTLB_RETRY__ATTEMPTS": "5", "CLIENTLB_RETRY": "x"},
            "CLIENTLB_RETRY is 'x', so CLIENTLB_RETRY__ATTEMPTS has no place",
        ),
        ({"CLIENTLB_POLICIE": "p2c"}, "CLIENTLB_POLICIE does not exist; did you mean CLIENTLB_POLICY"),
        ({"CLIENTLB_RETRY": "x"}, "default.retry is 'x'; give a table"),
        ({"CLIENTLB_RETRY__STATUSES": "503"}, "retry.statuses is 503; give a set"),
        ({"CLIENTLB_RETRY__ATTEMPTS": "many"}, "default.retry.attempts is 'many'; give a whole number"),
        ({"CLIENTLB_GUARD__EMPTY_HOLD": "9" * 5000}, "guard.empty_hold is '999"),
        ({"CLIENTLB_HEALTH__RATIO__SUCCESS": "80 %"}, "in default.health.ratio: health.ratio.success is '80 %'"),
        ({"CLIENTLB_HEALTH__SLOW": "true"}, "default.health.slow is True; give a table"),
    ],
)
def test_bad_variable_is_named(environ, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        load_options(environ=environ)


def test_a_variable_may_be_a_whole_table():
    environ = {"CLIENTLB_RETRY": "{attempts = 5}", "CLIENTLB_RETRY__STATUSES": "[503]"}
    retry = load_options(environ=environ)["*"].retry
    assert (retry.stop.max_attempt_number, retry.statuses) == (5, {503})


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"options file .*nowhere\.toml"):
        load_options(tmp_path / "nowhere.toml", environ={})


def test_false_turns_off_for_one_service_what_the_default_turns_on(tmp_path):
    path = tmp_path / "clientlb.toml"
    path.write_text(
        """
        [default]
        deadline = 2.0
        attempt_timeout = 0.5
        deadline_header = "X-Ms"
        throttle = {}
        journal = {}
        retry.hedge = {}
        [services.orders]
        deadline = false
        attempt_timeout = false
        deadline_header = false
        throttle = false
        journal = false
        retry.hedge = false
        """
    )
    options = load_options(path, {})
    assert options["orders"] == dataclasses.replace(Options(), retry=options["orders"].retry)
    assert options["orders"].retry.hedge is None
    assert options["*"].retry.hedge is not None
    assert options["*"].throttle is not None
    assert load_options(path, {"CLIENTLB_THROTTLE": "false"})["*"].throttle is None
    with pytest.raises(ConfigurationError, match=r"default\.retry is False; give a table"):
        load_options(path, {"CLIENTLB_RETRY": "false"})
