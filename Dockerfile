# RIFT Lab in a container. Untried: written where no Docker was at hand; tests/test_deployment.py checks what can be read.
#   docker build -t rift-lab .
#   docker run --rm -p 127.0.0.1:7860:7860 -v rift-lab:/data rift-lab
# With a GPU add --gpus all. The page has no password: publish the port on 127.0.0.1, or put a door in front of it.
FROM python:3.12-slim

RUN useradd --create-home --uid 1000 rift && mkdir /data && chown rift /data
WORKDIR /home/rift/app
COPY requirements.lock .
RUN pip install --no-cache-dir --require-hashes -r requirements.lock
COPY --chown=rift app.py README.md LICENSE ./
COPY --chown=rift assets assets
COPY --chown=rift rift rift

USER rift
# The address is the container's own: what reaches it is decided by -p.
ENV GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=7860 GRADIO_ANALYTICS_ENABLED=False \
    RIFT_LAB=/data HF_HOME=/data/huggingface PYTHONUNBUFFERED=1
VOLUME /data
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/', timeout=8)"]
CMD ["python", "app.py"]
