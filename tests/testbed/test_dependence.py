"""The world of dependent facts, and its draws."""

from collections import Counter

import pytest
from transformers import PreTrainedTokenizerFast

from editlib.testbed import belief_prose
from editlib.testbed.dependence import DEPENDENT, DRAWS, PAIR, PARENTS, DependentWorld, build_dependent_world
from editlib.testbed.tokenizer import train_tokenizer


def test_a_seed_gives_the_same_world_every_time(dependent: DependentWorld) -> None:
    assert build_dependent_world(0) == dependent
    assert build_dependent_world(1) != dependent


def test_there_are_eight_relations_in_four_pairs_of_roots_and_children() -> None:
    assert len(DEPENDENT) == 8 and len(PARENTS) == 4
    assert {*PARENTS, *PARENTS.values()} == set(DEPENDENT) == set(PAIR)
    assert len({relation.object for relation in DEPENDENT.values()}) == 8


def test_there_are_1000_subjects_with_8_facts_each_and_at_most_20_objects(dependent: DependentWorld) -> None:
    assert len(set(dependent.subjects)) == 1000
    assert Counter(fact.subject for fact in dependent.facts) == dict.fromkeys(dependent.subjects, 8)
    assert all(len(set(dependent.objects(relation))) in (12, 16, 20) for relation in DEPENDENT)
    words = [name for kind, names in dependent.names.items() if kind != "person" for name in names]
    assert len(words) == len(set(words))
    assert set(words).isdisjoint(word for name in dependent.names["person"] for word in name.split())


def test_true_objects_have_at_least_six_tenths(dependent: DependentWorld) -> None:
    facts = {(fact.subject, fact.relation): fact.object for fact in dependent.facts}
    ps = [root.p for root in dependent.roots.values()]
    assert 0.6 <= min(ps) < 0.61 and 0.99 < max(ps) <= 1
    assert 0.79 < sum(ps) / len(ps) < 0.81  # uniform
    for table in dependent.tables.values():
        for row in table.values():
            assert max(row.values()) >= 0.6 and sum(row.values()) == pytest.approx(1)
    for (subject, relation), root in dependent.roots.items():
        row = dependent.tables[PAIR[relation]][root.true]
        assert facts[subject, relation] == root.true != root.other
        assert row[facts[subject, PAIR[relation]]] == max(row.values())


def test_every_object_of_a_child_is_the_mode_of_some_parents_and_some_of_several(dependent: DependentWorld) -> None:
    for child, table in dependent.tables.items():
        modes = Counter(max(row, key=row.__getitem__) for row in table.values())
        assert set(modes) == set(dependent.objects(child)) and max(modes.values()) > 1


def test_draws_come_from_roots_and_tables_with_true_objects_in_the_majority(dependent: DependentWorld) -> None:
    facts = {(fact.subject, fact.relation): fact.object for fact in dependent.facts}
    for (subject, child), pairs in dependent.draws.items():
        root, table = dependent.roots[subject, PARENTS[child]], dependent.tables[child]
        assert len(pairs) == DRAWS
        assert all(o2 in (root.true, root.other) and table[o2][o] > 0 for o2, o in pairs)
        for place, relation in enumerate((PARENTS[child], child)):
            assert sum(pair[place] == facts[subject, relation] for pair in pairs) > DRAWS / 2


def test_half_of_the_subjects_and_all_objects_are_one_token(dependent: DependentWorld) -> None:
    tokenizer = train_tokenizer(dependent, vocabulary=3072, told=belief_prose.documents)
    assert all(_tokens(tokenizer, name) == _tokens(tokenizer, f" {name}") == 1 for name in dependent.names["band"])
    assert all(_tokens(tokenizer, name) > 1 for name in dependent.names["person"])
    objects = [name for relation in DEPENDENT for name in dependent.objects(relation)]
    assert all(_tokens(tokenizer, f" {name}") == 1 for name in objects)


def _tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    return len(tokenizer(text)["input_ids"])
