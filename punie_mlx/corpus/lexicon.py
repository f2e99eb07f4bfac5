"""The words of the example corpus: closed classes, so that each slot of a question has a recognisable filler."""

DIRS = (
    "src", "app", "lib", "tests", "core", "api", "docs", "scripts", "pkg", "web", "data", "repos", "tools", "server",
)  # fmt: skip
STEMS = (
    "models", "views", "utils", "config", "main", "auth", "db", "tasks", "routes", "schema", "forms", "urls", "cli",
    "io", "types", "cache", "index", "admin", "signals", "client", "errors", "hooks", "state", "store",
)  # fmt: skip
EXTENSIONS = ("py", "md", "toml", "json", "yaml", "txt")
CLASSES = (
    "User", "Order", "Invoice", "Cart", "Session", "Token", "Profile", "Payment", "Report", "Event", "Widget",
    "Router", "Ticket", "Queue", "Worker", "Parser", "Config", "Account", "Product", "Plugin",
)  # fmt: skip
SUFFIXES = (
    "Serializer", "View", "Manager", "Service", "Handler", "Factory", "Model", "Helper", "Mixin", "Adapter", "Form",
    "Policy",
)  # fmt: skip
VERBS = ("get", "load", "save", "parse", "build", "check", "merge", "render", "fetch", "update")
WORDS = (
    "amber", "basil", "cedar", "delta", "ember", "fjord", "grove", "hazel", "ivory", "jasper", "karma", "lotus",
    "maple", "noble", "ocean", "pearl", "quartz", "river", "sable", "tulip", "umber", "velvet", "willow", "xenon",
    "yarrow", "zephyr", "anchor", "bridge", "candle", "dragon", "engine", "falcon", "garden", "hammer", "island",
    "jungle", "kettle", "ladder", "magnet", "needle", "orange", "pencil", "rocket", "silver", "temple", "urchin",
    "violet", "window", "yellow", "zipper",
)  # fmt: skip
PACKAGES = (
    "requests", "numpy", "flask", "django", "pytest", "pandas", "rich", "typer", "httpx", "attrs", "click", "celery",
    "redis", "scipy", "sphinx", "starlette",
)  # fmt: skip
LABELS = ("bug", "feature", "question", "urgent", "backend", "frontend", "security", "performance", "cleanup")
OPTION_KEYS = ("debug", "level", "workers", "retries", "theme", "locale", "color", "strict", "limit", "mode")
FRAMEWORKS = ("Django", "Flask", "Pydantic", "Celery", "FastAPI", "Starlette")
KINDS = ("view", "model", "form", "handler", "serializer", "task", "signal", "command", "test", "middleware")
FEATURES = (
    "async/await", "dataclasses", "decorators", "generators", "logging", "threads", "sockets", "regex", "pathlib",
    "asyncio", "typing", "contextlib", "itertools", "subprocess",
)  # fmt: skip

# topic → (what it is, when to use it)
TOPICS = {
    "dependency injection": ("passing in what an object needs", "parts must be swapped in tests"),
    "ORM": ("a layer that maps tables to objects", "models matter more than query speed"),
    "raw SQL": ("a query written by hand for the database", "a query must be fast and exact"),
    "a decorator": ("a function that wraps another function", "many functions share a step"),
    "a generator": ("a function that yields values one by one", "the data is too large for a list"),
    "a context manager": ("an object that opens and closes a resource", "cleanup must always happen"),
    "a closure": ("a function that remembers its scope", "a callback needs some state"),
    "a dataclass": ("a class that mostly holds fields", "a record needs names and types"),
    "a mutex": ("a lock that one thread holds at a time", "threads write the same data"),
    "a virtual environment": ("a folder with its own packages", "projects need other versions"),
    "memoization": ("keeping results to use them again", "the same call is made often"),
    "recursion": ("a function that calls itself", "the data is a tree"),
    "duck typing": ("using an object by what it can do", "the class of a value is not important"),
    "type hinting": ("writing the types of values in code", "a team reads the code"),
    "unit testing": ("checking small parts of code alone", "the code will change"),
    "REST": ("a style of web interface over resources", "many clients share a server"),
    "GraphQL": ("a query language for web data", "clients need different fields"),
    "the GIL": ("a lock that guards the interpreter", "threads share the interpreter"),
    "lazy loading": ("reading data only when it is needed", "startup must be quick"),
    "a race condition": ("a fault that depends on timing", "you explain a flaky test"),
    "an event loop": ("a loop that runs waiting tasks", "a program waits for many sockets"),
    "a message queue": ("a buffer between two services", "work can be done later"),
    "composition": ("building objects from smaller ones", "inheritance gets deep"),
    "idempotence": ("doing a thing twice without harm", "a request may be sent again"),
}
