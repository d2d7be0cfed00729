"""A Django project that asks the service `inventory` by its name. gunicorn.conf.py registers it as `orders`.

pip install 'clientlb[httpx]' django gunicorn
PORT=8000 REGISTRY=consul://127.0.0.1:8500 gunicorn django_project.wsgi
"""
