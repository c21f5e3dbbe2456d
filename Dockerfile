# The project with its site built, served on port 8000:
#   docker build -t editlib .
#   docker run --rm -p 8000:8000 editlib                        # read the book
#   docker run --rm --gpus all editlib .venv/bin/editlib edit --device cuda ...   # use a GPU
# torch's ordinary build brings CUDA's libraries with it and also runs without a GPU. For a much smaller image without
# them, name the index of torch's CPU builds: docker build --build-arg TORCH_INDEX=https://... -t editlib .
# Whether it builds is not part of this project's tests.
FROM python:3.11-slim
ARG TORCH_INDEX=""
RUN apt-get update \
    && apt-get install -y --no-install-recommends git make chromium \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home reader
USER reader
WORKDIR /home/reader/editlib
COPY --chown=reader . .
RUN python3 -m venv .venv \
    && if [ -n "$TORCH_INDEX" ]; then .venv/bin/pip install --no-cache-dir -c constraints.txt torch --index-url "$TORCH_INDEX"; fi \
    && PIP_NO_CACHE_DIR=1 make book
EXPOSE 8000
CMD [".venv/bin/python", "-m", "http.server", "8000", "--directory", "_build/html"]
