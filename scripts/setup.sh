# Sourced by the other scripts: makes .venv with the package and its tools, once; sets $PY to its Python.
# Needs Python 3.11 or newer. Uses uv where it is installed, pip where not.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PY=.venv/bin/python

find_python() {
  local name
  for name in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
    if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "scripts: no Python 3.11 or newer (with venv) was found: install one, or name it with PYTHON=" >&2
  return 2
}

install_blas() { # MLX on a Linux CPU is some 20 times slower without it
  [ "$(uname)" = Linux ] || return 0
  if ldconfig -p 2>/dev/null | grep -q 'libopenblas\.so\.0'; then return 0; fi
  if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    { apt-get update -qq && apt-get install -y -qq libopenblas0-pthread; } >/dev/null 2>&1 ||
      echo "scripts: libopenblas0-pthread could not be installed: MLX will be slow on this CPU" >&2
  else
    echo "scripts: install OpenBLAS (Debian/Ubuntu: libopenblas0-pthread), or MLX will be slow on this CPU" >&2
  fi
}

stamp=$(cat pyproject.toml constraints.txt | cksum)
if [ "$(cat .venv/.ready 2>/dev/null || true)" != "$stamp" ]; then
  echo "scripts: setting up .venv (once; a minute or two)" >&2
  install_blas
  python=$(find_python)
  if command -v uv >/dev/null; then
    uv venv --quiet --clear --python "$(command -v "$python")" .venv
    uv pip install --quiet --python "$PY" -c constraints.txt -e '.[dev]' >&2
  else
    "$python" -m venv --clear .venv
    "$PY" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' >&2
  fi
  echo "$stamp" >.venv/.ready
fi
export PATH="$PWD/.venv/bin:$PATH"
