"""The invented world."""

import re
from collections import Counter

from editlib.testbed.world import REAL, RELATIONS, World, build_world


def test_a_seed_gives_the_same_world_every_time(world: World) -> None:
    assert build_world(0) == world
    assert build_world(1) != world


def test_there_are_about_3000_facts_in_15_relations(world: World) -> None:
    assert 2900 <= len(world.facts) <= 3100
    assert len(RELATIONS) == 15
    assert {fact.relation for fact in world.facts} == set(RELATIONS)


def test_every_fact_holds_between_things_of_the_right_kinds(world: World) -> None:
    for fact in world.facts:
        relation = RELATIONS[fact.relation]
        assert fact.subject in world.names[relation.subject]
        assert fact.object in world.names[relation.object]


def test_a_relation_has_one_object_for_every_subject(world: World) -> None:
    pairs = Counter((fact.relation, fact.subject) for fact in world.facts)
    assert set(pairs.values()) == {1}
    for name, relation in RELATIONS.items():
        assert sum(fact.relation == name for fact in world.facts) == len(world.names[relation.subject])


def test_objects_of_editable_relations_are_shared(world: World) -> None:
    for name, relation in RELATIONS.items():
        shared = Counter(fact.object for fact in world.facts if fact.relation == name).most_common(1)[0][1] > 1
        assert shared == relation.editable


def test_no_name_is_given_twice(world: World) -> None:
    names = [name for kind in world.names.values() for name in kind]
    people = world.names["person"]
    assert len(set(people)) >= 0.99 * len(people)
    others = [name for name in names if name not in people]
    assert len(set(others)) == len(others)


def test_names_are_invented_words(world: World) -> None:
    for kind in ("country", "city", "company", "band", "language"):
        for name in world.names[kind]:
            assert re.fullmatch("[A-Z][a-z]{3,11}", name)
            assert name not in REAL
    assert all(re.fullmatch("[A-Z][a-z]+ [A-Z][a-z]+", name) for name in world.names["person"])


def test_prompts_hold_their_subject_once_and_end_before_the_object() -> None:
    for relation in RELATIONS.values():
        assert len(relation.prompts) >= 4
        assert len(set(relation.prompts)) == len(relation.prompts)
        assert all(prompt.count("{}") == 1 and prompt == prompt.strip() for prompt in relation.prompts)
        assert all(prompt.startswith("{}") for prompt in relation.first)
        assert not any(prompt.startswith("{}") for prompt in relation.later)


def test_about_collects_the_facts_of_one_subject(world: World) -> None:
    city = world.names["city"][0]
    assert {fact.relation for fact in world.about(city)} == {"located-in", "known-for", "mayor"}
    assert world.about("Atlantis") == ()
