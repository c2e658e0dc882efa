"""An index answers as a walk over the whole listing would."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.catalogue import Catalogue
from gateway.core.models import ModelInfo
from gateway.core.names import (
    ModelRef,
    looks_like_ollama,
    normalise_ollama_name,
    parse_ref,
)

names = st.sampled_from(["a", "A", "o/a", "O/a", "a:latest", "a:b", "A:B", "library/a", "x/y/a:b"])
refs = st.one_of(
    st.builds(ModelRef, st.just("huggingface"), names, st.none() | st.just("v1")),
    st.builds(lambda name: ModelRef("ollama", normalise_ollama_name(name)), names),
)


def walk(listed: list[ModelRef], name: str) -> list[ModelRef]:
    model, _, revision = name.partition("@")
    return sorted(
        {
            ref
            for ref in listed
            if (
                looks_like_ollama(name) and normalise_ollama_name(name).lower() == ref.model.lower()
                if ref.provider == "ollama"
                else model == ref.model and (not revision or revision == ref.revision)
            )
        }
    )


@given(st.lists(refs, max_size=12), names | st.builds("{}@v1".format, names))
def test_names_are_found_as_by_looking_at_every_model(listed: list[ModelRef], name: str) -> None:
    found = Catalogue(map(ModelInfo, listed)).named(name)
    expected = walk(listed, name)
    assert {str(ref).lower() for ref in found} == {str(ref).lower() for ref in expected}
    assert set(found) <= set(expected)


@given(st.lists(refs, min_size=1, max_size=12))
def test_a_model_is_found_whatever_revision_of_it_is_asked_for(listed: list[ModelRef]) -> None:
    catalogue = Catalogue(map(ModelInfo, listed))
    for ref in listed:
        assert catalogue.find(ref) is not None
        if ref.revision is None and ref.provider == "huggingface":
            pinned = catalogue.find(ModelRef(ref.provider, ref.model, "other"))
            assert pinned is not None and pinned.ref == ref


@given(st.lists(refs, min_size=1, max_size=12), st.data())
def test_a_full_name_as_it_is_listed_means_what_its_parts_mean(
    listed: list[ModelRef], data: st.DataObject
) -> None:
    catalogue = Catalogue(map(ModelInfo, listed))
    name = str(data.draw(st.sampled_from(listed)))
    spelled = catalogue.spelled(name)
    provider, _, rest = name.partition("/")
    assert spelled is not None and spelled.id == name
    by_parts = catalogue.find(parse_ref(provider, rest))
    assert by_parts is not None and by_parts.id.lower() == name.lower()
    assert catalogue.spelled(f"{name}?") is None
