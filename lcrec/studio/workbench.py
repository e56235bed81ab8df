"""What the studio's page asks, answered with the library's functions, as text and HTML.

`Workbench` holds a checkpoint, its data folder and what is counted of it, and has a method for each
thing that can be asked; all of them take and return plain values, so the page only lays them out.
What a person can get wrong is raised as `InputError`, a sentence.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import numpy as np
from pydantic import ValidationError

from lcrec.baselines.base import UNKNOWN, TrainingData, make_method, positions
from lcrec.baselines.settings import CooccurrenceSettings
from lcrec.core.artifacts import EMBEDDINGS, find_data, read_array
from lcrec.core.errors import InputError, closest
from lcrec.core.provenance import require_same_input
from lcrec.data.data_set import DataSet, load_data
from lcrec.data.folder import check_embeddings
from lcrec.data.id_map import Names, load_names
from lcrec.data.new_items import require_same_catalogue
from lcrec.data.splits import require_same_split
from lcrec.generate.one_request import history_of
from lcrec.generate.recommender import Recommender
from lcrec.generate.requests import RankingRequest, case_requests, require_task
from lcrec.index.page import draw_sunburst
from lcrec.index.tree import Branch, ItemTree
from lcrec.prompts.prompt_set import save_template
from lcrec.prompts.tasks import TASKS, Record, TaskData
from lcrec.prompts.templates import Template, read_template
from lcrec.prompts.tokens import sample_tokens
from lcrec.rankings.comparison import single_lists
from lcrec.rankings.overlap import compare_lists, target_places
from lcrec.rankings.predictions import Predictions, read_predictions, require_comparable, top_items
from lcrec.serve.batching import ServiceLimits
from lcrec.serve.middleware import Problem
from lcrec.serve.requests import RequestHandler, bodies

FOUND_ITEMS = 20  # of a search in the titles
NEAR = 2  # items of the history that a ranked item is set beside
NEIGHBOURS = 10
MOST_SHOWN = 500  # items of an unfolded branch
MOST_USERS = 50  # rows of a comparison
COMPARED_USERS = 500  # whom a checkpoint is asked for, to compare it
COMPARED_K = 20
RECORDS_SEEN = 2000  # until one has all that a template uses

# Which users a comparison shows: name -> (A finds it, B finds it).
SIDES = {
    "A finds it, B does not": (True, False),
    "B finds it, A does not": (False, True),
    "both find it": (True, True),
    "neither finds it": (False, False),
}

_PARTS: Any = (
    jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    .from_string(Path(__file__).with_name("parts.html").read_text(encoding="utf-8"))
    .module
)


def explain(problem: str) -> str:
    """Return what is wrong with an input as the page shows it."""
    return _PARTS.problem(problem)


@dataclass(frozen=True)
class Options:
    """What a person sets beside a history or a request in words.

    Attributes:
        k: how many items.
        brand, categories: values separated by commas; only items with one of them; "" for all.
        deny: ids of items never to recommend, one a line.
        exclude_history: never recommend an item of the history.
    """

    k: int = 10
    brand: str = ""
    categories: str = ""
    deny: str = ""
    exclude_history: bool = True


@dataclass(frozen=True, eq=False)
class Workbench:
    """A checkpoint with its data, to be looked at; one question at a time reaches the model.

    Attributes:
        recommender: the checkpoint.
        data: its data folder, read.
        ids: what users and items are called.
        tree: the index with the catalogue and, where given, the embeddings.
        compared: what can be compared, by name: predictions files and checkpoints.
        prompts_folder: where edited templates are saved; None for nowhere.
    """

    recommender: Recommender
    data: DataSet
    ids: Names
    tree: ItemTree
    compared: dict[str, Path] = field(default_factory=dict)
    prompts_folder: Path | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _read: dict[str, Predictions] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        model: Path,
        data: Path,
        *,
        index: Path | None = None,
        embeddings: Path | None = None,
        compared: Sequence[Path] = (),
        prompts_folder: Path | None = None,
        base: str | None = None,
        dtype: Any = None,
    ) -> "Workbench":
        """Load a checkpoint and the data folder that it was trained on, or one that continues it.

        Args:
            model: the checkpoint folder.
            data: its data folder.
            index: one that adds the folder's new items to the checkpoint's own; None for that.
            embeddings: the folder of the items' embeddings.
            compared: predictions files and checkpoints of the same data.
            prompts_folder: as for the class.
            base: where an adapter's base model lies now, if it moved.
            dtype: the weights' type; None for float32.

        Raises:
            InputError: one is missing or damaged, or they do not belong together.
        """
        retrain = f"python -m lcrec.finetune --data {data} --output DIR"
        require_same_catalogue(data, model, index)
        if model.is_dir():
            require_same_split(model, data, retrain)
        read = load_data(data)
        vectors = None
        if embeddings is not None:
            path = embeddings / EMBEDDINGS
            vectors = check_embeddings(read_array(path), len(read.items), path)
            rebuild = f"python -m lcrec.embed --data {data} --output {embeddings}"
            require_same_input(embeddings, "item", find_data(data).item, rebuild)
        for path in compared:
            if not path.exists():
                raise InputError(f"--compare {path}: no such file or folder")
        options = {} if dtype is None else {"dtype": dtype}
        recommender = Recommender.from_pretrained(model, base=base, index=index, **options)
        ids = load_names(data, read.interactions.users, len(read.items), None)
        return cls(
            recommender,
            read,
            ids,
            ItemTree(recommender.index, read.items, vectors),
            {str(path): path for path in dict.fromkeys([*compared, model])},
            prompts_folder,
        )

    # Users, items, histories.

    def pick_user(self, name: str, *, hide_test: bool) -> tuple[str, str]:
        """Return a user's items as lines of ids, and the id that was hidden, "" for none.

        Args:
            name: what the user is called.
            hide_test: leave out the item of the test split, and what came after it.

        Raises:
            InputError: there is no such user, or the test split holds nothing of theirs.
        """
        name = name.strip()
        cases = self.data.split.test.one_per_user() if hide_test else None
        history = history_of(name, self.data.interactions, self.ids, cases)
        lines = "\n".join(self.ids.items.names_of(history))
        if cases is None:
            return lines, ""
        user = self.data.interactions.users[self.ids.users.number(name)]
        target = int(cases.targets[cases.users.index(user)])
        return lines, self.ids.items.names[target]

    def random_user(self) -> str:
        """Return what some user of the test split is called."""
        user = np.random.default_rng().choice(self.data.split.test.users)
        return self.ids.users.names[self.data.interactions.users.index(str(user))]

    def find_items(self, words: str) -> list[tuple[str, str]]:
        """Return (title and id, id) of the first items whose titles hold all the words.

        Raises:
            InputError: there is none.
        """
        wanted = words.casefold().split()
        titles = ((item, self.data.items.title(item)) for item in range(len(self.data.items)))
        found = (
            (f"{title} ({self.ids.items.names[item]})", self.ids.items.names[item])
            for item, title in titles
            if all(word in title.casefold() for word in wanted)
        )
        first = list(islice(found, FOUND_ITEMS))
        if not first:
            raise InputError(f"no title holds {words.strip()!r:.60}")
        return first

    def add_item(self, history: str, item: str | None) -> str:
        """Return the history with an item at its end.

        Raises:
            InputError: no item is named.
        """
        if not item:
            raise InputError("no item is chosen; search the titles, then choose one")
        return "\n".join([*history.split("\n"), item]).strip()

    def _items(self, lines: str) -> list[int]:
        """Return the items of lines of ids."""
        return [self.ids.items.number(line.strip()) for line in lines.split("\n") if line.strip()]

    def _entry(self, item: int) -> SimpleNamespace:
        title, tokens = self.data.items.title(item), self.tree.index.text(item)
        return SimpleNamespace(title=title, id=self.ids.items.names[item], tokens=tokens)

    # Try and Ask.

    @cached_property
    def _handler(self) -> RequestHandler:
        limits = ServiceLimits()
        return RequestHandler(self.recommender, self.data.items, limits, self.ids.items)

    @cached_property
    def _counted(self) -> Any:
        """The counted neighbours, which need no model."""
        method = make_method(CooccurrenceSettings())
        method.fit(TrainingData(self.data.split.train, len(self.data.items)))
        return method

    def recommend(self, history: str, options: Options, target: str = "") -> str:
        """Return what comes after a history, and why, beside what is counted.

        Args:
            history: ids of items, one a line, oldest first.
            options: what else is set.
            target: the id of the item that came next; "" where nobody knows.

        Raises:
            InputError: the history is empty, an item is unknown, or the options leave too little.
        """
        items = self._items(history)
        if not items:
            raise InputError("the history is empty; load a user, or add items to it")
        return self._answer(None, items, options, target)

    def ask(self, query: str, history: str, options: Options) -> str:
        """Return what fits words, with a history or without, and why.

        Raises:
            InputError: the words are empty, the model never learnt `itemsearch`, or as `recommend`.
        """
        require_task("itemsearch", self.recommender.tasks)
        if not query.strip():
            raise InputError("nothing is asked; say in words what is looked for")
        return self._answer(query, self._items(history), options, "")

    def _answer(self, query: str | None, items: list[int], options: Options, target: str) -> str:
        ids = self.ids.items
        fields: dict[str, Any] = {"k": options.k, "exclude_history": options.exclude_history}
        fields["history"] = ids.names_of(items) if ids.is_raw else items
        denied = self._items(options.deny)
        fields["deny"] = ids.names_of(denied) if ids.is_raw else denied
        fields["filters"] = {
            name: [value.strip() for value in text.split(",")]
            for name, text in (("brand", options.brand), ("categories", options.categories))
            if text.strip()
        }
        recommend_body, search_body = bodies(ids)
        try:
            if query is None:
                body: Any = recommend_body(**fields)
            else:
                body = search_body(query=query, **fields)
            encoded = self._handler.encode(body)
        except Problem as problem:
            raise InputError(str(problem.detail)) from None
        except ValidationError as error:
            fault = error.errors()[0]
            raise InputError(f"{'/'.join(map(str, fault['loc']))}: {fault['msg']}") from None
        with self._lock:
            ((ranked, scores),) = self._handler.rank([encoded])
        taken = ids.number(target) if target else None
        contrast = []
        if query is None:
            request, every = encoded.request, np.arange(len(self.data.items))
            out = request.ruled_out()
            if request.allow is not None:
                out = np.append(out, np.setdiff1d(every, request.allow))
            score = self._counted.score(np.array([UNKNOWN]), [np.array(items)])
            (counted,) = top_items(score, request.k, [out])
            contrast = self._rows(*counted, taken)
        rows = self._rows(ranked, scores, taken)
        by = "codes" if self.tree.vectors is None else "embeddings"
        for row in rows:
            row.path = self.tree.path(row.item)
            near = self.tree.near(row.item, NEAR, by, among=items) if items else []  # type: ignore[arg-type]
            row.near = [(self._entry(one.item), one) for one in near]
        history = [self._entry(item) for item in items]
        return _PARTS.ranking(rows, contrast, history, taken is not None and self._entry(taken))

    def _rows(
        self, ranked: np.ndarray, scores: np.ndarray, taken: int | None
    ) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(item=i, entry=self._entry(i), score=score, is_target=i == taken)
            for i, score in zip(ranked.tolist(), scores.tolist(), strict=True)
        ]

    # Index.

    def overview(self) -> str:
        """Return the tree as a sunburst, and the branches of the first code."""
        picture = draw_sunburst(self.tree.index.codes)
        return _PARTS.overview(picture, self.tree.children())

    def branches(self) -> list[tuple[str, str]]:
        """Return (words and size, prefix) of the branches of the first code, largest first."""
        return [
            (f"{branch.text} {len(branch.items)} items: {', '.join(branch.words)}", branch.text)
            for branch in self.tree.children()
        ]

    def unfold(self, prefix: str) -> str:
        """Return a branch as a list that unfolds, down to its items.

        Raises:
            InputError: no item has the prefix.
        """
        branch = self.tree.branch(self.tree.read_prefix(prefix or ""))
        shown = branch.items[:MOST_SHOWN]
        left_out = len(branch.items) - len(shown)
        return _PARTS.tree(self._node(branch, set(shown.tolist()), is_open=True), left_out)

    def _node(self, branch: Branch, shown: set[int], *, is_open: bool) -> SimpleNamespace:
        """Return a branch with those below it, as far as their items are shown."""
        children, entries = [], []
        if len(branch.prefix) < self.tree.index.num_levels and len(branch.items) > 1:
            below = self.tree.children(branch.prefix)
            below = [child for child in below if shown.intersection(child.items.tolist())]
            children = [self._node(child, shown, is_open=False) for child in below]
        else:
            entries = [self._entry(item) for item in branch.items.tolist()]
        return SimpleNamespace(branch=branch, children=children, entries=entries, is_open=is_open)

    def neighbours(self, item: str | None) -> str:
        """Return an item's path, and its neighbours by code and by embedding side by side.

        Raises:
            InputError: there is no such item.
        """
        if not (item or "").strip():
            raise InputError("no item is named; search the titles, or type an item's id")
        number = self.ids.items.number(str(item).strip())
        lists = [("Nearest by code", self.tree.near(number, NEIGHBOURS, "codes"))]
        if self.tree.vectors is not None:
            near = self.tree.near(number, NEIGHBOURS, "embeddings")
            lists.append(("Nearest by embedding", near))
        shown = [(title, [(self._entry(one.item), one) for one in found]) for title, found in lists]
        return _PARTS.beside(self._entry(number), self.tree.path(number), shown)

    # Compare.

    def compare(self, a: str, b: str, k: int, side: str) -> str:
        """Return what two rankings of the test split have in common, and users apart.

        A checkpoint is asked for at most 500 cases, drawn once; a file has its own.

        Args:
            a, b: names of `compared`.
            k: how many items of each ranking count.
            side: a key of `SIDES`.

        Raises:
            InputError: one cannot be read, or they have no user in common.
        """
        if a not in self.compared or b not in self.compared or a == b:
            raise InputError("choose two different ones; --compare names more of them")
        one, two = self._predictions(a), self._predictions(b)
        common = set(two.keys)
        keys = [key for key in one.keys if key in common]
        if not keys:
            raise InputError(f"{a} and {b} answer for no user in common; they are of other splits")
        one, two = one.in_order_of(keys), two.in_order_of(keys)
        require_comparable({a: one, b: two})
        (first, _), (second, _) = single_lists([one, two], [Path(a), Path(b)])
        items = len(self.data.items)
        users = positions(self.data.split.train, one.users)
        if max(first.max(), second.max(), one.targets.max()) >= items or (users < 0).any():
            raise InputError(f"{a} or {b} was made from other data than this studio's")
        if k > min(first.shape[1], second.shape[1]):
            k = min(first.shape[1], second.shape[1])
        train = self.data.split.train
        popularity = np.bincount(train.items, minlength=items)
        activity = np.diff(train.offsets)[users]
        figures = compare_lists(
            first, second, one.targets, k, popularity=popularity, activity=activity
        )
        places = [target_places(ranked, one.targets, k) for ranked in (first, second)]
        in_a, in_b = SIDES[side]
        chosen = np.flatnonzero(((places[0] > 0) == in_a) & ((places[1] > 0) == in_b))
        rows = [self._compared(one, int(row), places) for row in chosen[:MOST_USERS]]
        return _PARTS.compared(a, b, k, _figures(figures, one.num_users), side, rows, len(chosen))

    def _compared(self, one: Predictions, row: int, places: list[np.ndarray]) -> SimpleNamespace:
        place = self.data.interactions.users.index(one.users[row])
        history = self.data.split.train.sequence(place)[-3:].tolist()
        target = int(np.atleast_1d(one.targets[row])[0])
        return SimpleNamespace(
            user=self.ids.users.names[place],
            history=[self.data.items.title(item) for item in history],
            target=self._entry(target),
            a=int(places[0][row]),
            b=int(places[1][row]),
        )

    def _predictions(self, name: str) -> Predictions:
        """Return the rankings of the test split by a file, or by a checkpoint that is asked now."""
        path = self.compared[name]
        with self._lock:
            if name not in self._read and path.is_dir():
                is_own = name == list(self.compared)[-1]
                model = self.recommender if is_own else Recommender.from_pretrained(path)
                if len(model.index) != len(self.data.items):
                    raise InputError(f"{path} was trained on another catalogue")
                cases = self.data.split.test.sample(COMPARED_USERS, 0)
                k = min(COMPARED_K, len(model.index))
                ranking = model.rank(case_requests(cases, RankingRequest(k=k)))
                self._read[name] = Predictions(
                    cases.users,
                    cases.targets.astype(np.int64),
                    {None: ranking.items},
                    {None: ranking.scores},
                    None if cases.numbers is None else cases.numbers.tolist(),
                )
            elif name not in self._read:
                self._read[name] = read_predictions(path)
            return self._read[name]

    # Prompts.

    def templates(self, task: str) -> list[str]:
        """Return the ids of the templates of a task."""
        return [t.id for t in self.recommender.prompts.templates if t.task == task]

    def template(self, template_id: str) -> tuple[str, str]:
        """Return question and answer of a template; raises `InputError` where there is none."""
        template = self.recommender.prompts.get(template_id)
        return template.question, template.answer

    def show_prompt(self, task: str, question: str, answer: str, user: str) -> str:
        """Return a sample as the model reads it, or what is wrong with its template.

        Args:
            task: the template's task.
            question, answer: its Jinja text.
            user: whose history is asked about (`seqrec`); other tasks show their first record.

        Raises:
            InputError: there is no such user, or the data has no record for the template.
        """
        template, faults = self._draft(task, question, answer)
        if template is None or faults:
            return _PARTS.faults(faults)
        if task == "seqrec":
            record, note = self._user_record(user), f"User {user.strip()}."
        else:
            records = islice(TASKS[task].records(self._task_data), RECORDS_SEEN)
            found = next((record for record in records if template.fits(record)), None)
            if found is None:
                raise InputError(f"no record of {task} here has all that the template uses")
            record, note = found, "The first record that has all that the template uses."
        encoder = self.recommender.request_encoder.prompt_encoder
        tokens = sample_tokens(encoder, *template.render(record))
        return _PARTS.prompt(tokens, sum(trained for _, trained in tokens), note)

    def rank_with(self, question: str, answer: str, user: str, k: int = 10) -> str:
        """Return a user's ranking by the model's own template of `seqrec`, and by an edited one.

        Raises:
            InputError: the template has faults, or there is no such user.
        """
        template, faults = self._draft("seqrec", question, answer)
        if template is None or faults:
            return _PARTS.faults(faults)
        lines, target = self.pick_user(user, hide_test=True)
        items = self._items(lines)
        k = min(k, len(self.data.items))
        with self._lock:
            rankings = [
                self.recommender.recommend([items], k, template=own) for own in (None, template)
            ]
        taken = self.ids.items.number(target)
        sides = [self._rows(one.items[0], one.scores[0], taken) for one in rankings]
        return _PARTS.before_after(*sides)

    def save(self, task: str, template_id: str, question: str, answer: str, name: str) -> str:
        """Write an edited template into the prompts folder and say where.

        Raises:
            InputError: there is no such folder, or the template, its id or the name will not do.
        """
        if self.prompts_folder is None:
            raise InputError("start the studio with --prompts DIR to save templates there")
        template, faults = self._draft(task, question, answer, template_id.strip())
        if template is None or faults:
            raise InputError(f"not saved: {faults[0]}")
        path = save_template(self.prompts_folder, name.strip(), template, self.recommender.prompts)
        return _PARTS.note(f"Saved as {path}; lcrec finetune --prompts {self.prompts_folder}")

    def _draft(
        self, task: str, question: str, answer: str, template_id: str = "draft"
    ) -> tuple[Template | None, list[str]]:
        if task not in TASKS:
            raise InputError(f"no task {task!r:.60}{closest(str(task), TASKS)}")
        entry = {"id": template_id, "question": question.strip(), "answer": answer.strip()}
        return read_template(entry, TASKS[task])

    def _user_record(self, user: str) -> Record:
        lines, target = self.pick_user(user, hide_test=True)
        record = self.recommender.request_encoder.record(RankingRequest(self._items(lines)))
        return {**record, "target": self.tree.index.texts[self.ids.items.number(target)]}

    @cached_property
    def _task_data(self) -> TaskData:
        encoder = self.recommender.request_encoder
        return TaskData(
            self.data.items,
            self.data.split.train,
            self.recommender.index,
            max_history=encoder.max_history,
            max_text_words=encoder.max_text_words,
            user_texts=self.data.user_texts,
            shows_neighbours=True,
        )


def _figures(figures: dict[str, Any], users: int) -> list[tuple[str, str]]:
    hits, total = figures["hits"], figures["all"]
    return [
        ("users", f"{users:,}"),
        ("overlap of the rankings", f"{figures['overlap']:.4f}"),
        ("targets that both find", f"{hits['both']:,}"),
        ("targets that A alone finds", f"{hits['a_only']:,}"),
        ("targets that B alone finds", f"{hits['b_only']:,}"),
        ("recall of A", f"{total['recall_a']:.4f}"),
        ("recall of B", f"{total['recall_b']:.4f}"),
        ("a perfect choice between the two", f"{total['oracle']:.4f}"),
    ]
