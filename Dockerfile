# The studio in a container.
#   docker build -t huaben .                                    CPU
#   docker build -t huaben --build-arg DEVICE=cuda .            NVIDIA GPU (run it with --gpus all)
#   docker run --rm -v huaben:/data huaben studio token add NAME --data /data
#   docker run -p 8600:8600 -v huaben:/data huaben
FROM python:3.12-slim
ARG DEVICE=cpu
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY huaben ./huaben
RUN if [ "$DEVICE" = cpu ]; then \
      pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu; \
    fi \
 && pip install --no-cache-dir ".[studio,postgres]" \
 && useradd --create-home --uid 1000 huaben && mkdir /data && chown huaben /data
USER huaben
VOLUME /data
EXPOSE 8600
HEALTHCHECK CMD python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8600/healthz', timeout=3)"
ENTRYPOINT ["huaben"]
CMD ["studio", "--host", "0.0.0.0", "--port", "8600", "--data", "/data"]
