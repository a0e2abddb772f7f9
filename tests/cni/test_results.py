"""Results of all versions (section 5), converted up and down."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapwright.cni import results
from tapwright.cni.versions import VERSIONS
from tests.cni.fakes import ALL_VERSIONS

pytestmark = pytest.mark.unit

V4 = st.integers(0, 255).map(lambda n: f"10.{n}.0.1/16")
V6 = st.integers(0, 255).map(lambda n: f"fd00:{n:x}::1/64")
ADDRESS = st.sampled_from(["10.0.0.1", "fd00::1", "::ffff:10.0.0.1"])
TEXT = st.text(max_size=5)
UNKNOWN = st.dictionaries(st.sampled_from(["vendor", "x-y"]), st.integers() | TEXT, max_size=2)


def with_some(required: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[Any]:
    known = st.fixed_dictionaries(required, optional=optional)
    return st.tuples(known, UNKNOWN).map(lambda pair: {**pair[1], **pair[0]})


@st.composite
def rich_results(draw: st.DrawFn, version: str) -> dict[str, Any]:
    """A result of 0.3.0 or later, with whatever keys the version has, and unknown ones."""
    new = version == "1.1.0"
    number = st.integers(0, 9000)
    new_interface = {"mtu": number, "socketPath": TEXT, "pciID": TEXT} if new else {}
    keys = ("mtu", "advmss", "priority", "table", "scope")
    new_route = dict.fromkeys(keys, number) if new else {}
    interfaces = draw(
        st.lists(
            with_some({"name": TEXT}, {"mac": TEXT, "sandbox": TEXT, **new_interface}), max_size=3
        )
    )
    optional: dict[str, Any] = {"gateway": ADDRESS}
    if interfaces:
        optional["interface"] = st.integers(0, len(interfaces) - 1)
    ips = draw(st.lists(with_some({"address": V4 | V6}, optional), max_size=3))
    if version < "1.0.0":
        ips = [{**ip, "version": "6" if ":" in ip["address"] else "4"} for ip in ips]
    routes = draw(st.lists(with_some({"dst": V4 | V6}, {"gw": ADDRESS, **new_route}), max_size=3))
    parts = {"interfaces": interfaces, "ips": ips, "routes": routes}
    return {
        **draw(UNKNOWN),
        "cniVersion": version,
        **{key: value for key, value in parts.items() if value},
        "dns": draw(st.dictionaries(st.sampled_from(["domain"]), TEXT)),
    }


@st.composite
def poor_results(draw: st.DrawFn, version: str) -> dict[str, Any]:
    """A result of 0.1.0 or 0.2.0."""
    result: dict[str, Any] = {"cniVersion": version}
    families = draw(st.sampled_from([("ip4",), ("ip6",), ("ip4", "ip6")]))
    for key in families:
        address = V4 if key == "ip4" else V6
        result[key] = draw(with_some({"ip": address}, {"gateway": ADDRESS}))
        routes = draw(st.lists(with_some({"dst": address}, {"gw": ADDRESS}), max_size=2))
        if routes:
            result[key]["routes"] = routes
    return result


def any_result(version: str) -> st.SearchStrategy[dict[str, Any]]:
    return poor_results(version) if version < "0.3.0" else rich_results(version)


@pytest.mark.parametrize("version", ALL_VERSIONS)
@given(data=st.data())
def test_nothing_is_lost_between_equal_versions(version: str, data: st.DataObject) -> None:
    result = data.draw(any_result(version))
    assert results.as_version(result, version) == result


@pytest.mark.parametrize("low", ALL_VERSIONS)
@given(data=st.data())
def test_up_and_down_again(low: str, data: st.DataObject) -> None:
    """A later version can say all that an earlier one says."""
    result = data.draw(any_result(low))
    high = data.draw(st.sampled_from(ALL_VERSIONS[ALL_VERSIONS.index(low) :]))
    up = results.as_version(result, high)
    assert up["cniVersion"] == high
    assert results.check(up, high) == up
    assert results.as_version(up, low) == result


@given(data=st.data())
def test_down_is_the_same_by_any_way(data: st.DataObject) -> None:
    """Straight to an earlier version, or by way of one in between."""
    result = data.draw(rich_results("1.1.0"))
    middle = data.draw(st.sampled_from(VERSIONS[2:]))
    low = data.draw(st.sampled_from(VERSIONS[2 : VERSIONS.index(middle) + 1]))
    by_way = results.as_version(results.as_version(result, middle), low)
    assert by_way == results.as_version(result, low)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["cniVersion", "ips", "ip4", "ip", "dst", "routes", "address", "dns"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(value=json_values, version=st.sampled_from(VERSIONS))
def test_no_value_crashes_it(value: Any, version: str) -> None:
    """Whatever a plugin prints, it is a result or a ValueError."""
    try:
        result = results.as_version(value, version)
    except ValueError:
        return
    assert result["cniVersion"] == version


@pytest.mark.parametrize("version", ["0.3.0", "0.4.0", "1.0.0"])
def test_what_1_1_0_added_stays_in_earlier_results(version: str) -> None:
    """libcni has one type for 1.0.0 and 1.1.0, so the MTU of an interface reaches its users."""
    new = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "e", "mtu": 1, "socketPath": "/s", "pciID": "p"}],
        "routes": [{"dst": "::/0", "mtu": 1, "advmss": 2, "priority": 3, "table": 4, "scope": 0}],
    }
    assert results.as_version(new, "1.1.0") == new
    assert results.as_version(new, version) == {**new, "cniVersion": version}


def test_the_version_of_an_address_is_of_earlier_results() -> None:
    """From 1.0.0 on the key is none of the specification's, and may be what it likes."""
    ips = [{"address": "10.0.0.1/8", "version": 4}]
    assert results.as_version({"ips": ips}, "1.0.0")["ips"] == ips
    with pytest.raises(ValueError, match="version"):
        results.as_version({"ips": ips}, "0.4.0")


def test_shape_of_0_2_0() -> None:
    """The first address of each family, with the routes of its family."""
    new = {
        "cniVersion": "1.0.0",
        "ips": [
            {"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 0},
            {"address": "10.0.0.3/24"},
            {"address": "fd00::2/64"},
        ],
        "interfaces": [{"name": "eth0"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd00::1"}],
        "dns": {"domain": "x"},
    }
    assert results.as_version(new, "0.2.0") == {
        "cniVersion": "0.2.0",
        "ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
        "ip6": {"ip": "fd00::2/64", "routes": [{"dst": "::/0", "gw": "fd00::1"}]},
        "dns": {"domain": "x"},
    }


def test_0_2_0_needs_an_address() -> None:
    with pytest.raises(ValueError, match="at least one address"):
        results.as_version({"cniVersion": "1.0.0"}, "0.2.0")


@pytest.mark.parametrize(
    ("result", "word"),
    [
        ([], "object"),
        ({"cniVersion": "7.0.0"}, "cniVersion"),
        ({"ips": {"a": 1}}, "ips"),
        ({"ips": [{"address": 1}]}, "address"),
        ({"ips": [{"address": "10.0.0.1/8", "interface": "0"}]}, "interface"),
        ({"ips": [{"address": "10.0.0.1/8", "interface": True}]}, "interface"),
        ({"ips": [{"address": "10.0.0.1"}]}, "address"),
        ({"ips": [{"address": "10.0.0.256/8"}]}, "address"),
        ({"ips": [{"address": "10.0.0.1/33"}]}, "address"),
        ({"ips": [{"address": "fd00::1/129"}]}, "address"),
        ({"ips": [{"address": "fd00::1%eth0/64"}]}, "address"),
        ({"ips": [{"address": "10.0.0.1/-1"}]}, "address"),
        ({"ips": [{"address": "10.0.0.1/8", "gateway": "10.0.0.1/8"}]}, "gateway"),
        ({"routes": [{"dst": "default"}]}, "dst"),
        ({"routes": [{"dst": "10.0.0.0/8", "gw": "eth0"}]}, "gw"),
        ({"routes": [{"dst": "10.0.0.0/8", "mtu": "1400"}]}, "mtu"),
        ({"interfaces": [{"name": 7}]}, "name"),
        ({"dns": {"nameservers": "10.0.0.1"}}, "nameservers"),
        ({"dns": {"search": [1]}}, "search"),
        ({"interfaces": ["eth0"]}, "interfaces"),
        ({"routes": [{}]}, "dst"),
        ({"dns": ["x"]}, "dns"),
        ({"ip4": {"ip": None}}, "ip4"),
        ({"ip4": {"ip": "10.0.0.1/8", "routes": [{"dst": "x"}]}}, "routes"),
    ],
)
def test_wrong_shapes_are_named(result: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        results.as_version(result, "1.0.0")
