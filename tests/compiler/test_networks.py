"""Networks by name and by import path."""

import pytest
import torch
from torch import nn

from compiler import networks, weights

USER_MODULE = """
from torch import nn

class Mine(nn.Sequential):
    input_shape = (1, 8, 8)
    def __init__(self):
        super().__init__(nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))

class Shapeless(Mine):
    input_shape = None

def broken():
    return 1 / 0
broken.input_shape = (1, 8, 8)

def not_a_network():
    return 3
not_a_network.input_shape = [1, 8, 8]
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "fleetcut_user_networks.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "fleetcut_user_networks"


@pytest.mark.parametrize("name", sorted(networks.NETWORKS))
def test_every_network_builds_in_eval_mode_and_classifies(name):
    network = networks.build(name, seed=0)
    assert not network.training
    with torch.inference_mode():
        answer = network.to("meta")(torch.zeros(2, *networks.input_shape(name), device="meta"))
    assert answer.shape == (2, networks.NETWORKS[name].classes)


def test_weights_follow_the_seed_and_nothing_else():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = weights.sha256(networks.build("digits_resnet", seed=1).state_dict())
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert weights.sha256(networks.build("digits_resnet", seed=1).state_dict()) == first
    assert weights.sha256(networks.build("digits_resnet", seed=2).state_dict()) != first


def test_a_users_own_network_by_import_path(user_module):
    name = f"{user_module}:Mine"
    assert networks.input_shape(name) == (1, 8, 8)
    network = networks.build(name, seed=0)
    assert isinstance(network, nn.Module)
    assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 4)


def test_unknown_networks_are_refused_with_a_way_on(user_module):
    with pytest.raises(networks.UnknownNetworkError, match="digits_mobilenet, digits_resnet"):
        networks.build("resnet", seed=0)
    with pytest.raises(networks.UnknownNetworkError, match="PYTHONPATH"):
        networks.input_shape("no_such_module:factory")
    with pytest.raises(networks.UnknownNetworkError, match="Missing"):
        networks.build(f"{user_module}:Missing", seed=0)
    with pytest.raises(networks.UnknownNetworkError, match="input_shape = "):
        networks.build(f"{user_module}:Shapeless", seed=0)


def test_a_factory_that_makes_no_network_is_an_error_of_the_compiler(user_module):
    with pytest.raises(networks.FactoryError, match="returned int. Next: return a torch"):
        networks.build(f"{user_module}:not_a_network", seed=0)
    with pytest.raises(networks.FactoryError, match="raised ZeroDivisionError: .* Next: call it"):
        networks.build(f"{user_module}:broken", seed=0)
