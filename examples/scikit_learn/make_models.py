"""Registers three versions of a flower classifier: two that answer one API, and a third that asks for less."""

import mlflow
from mlflow.models import infer_signature
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

NAME = "iris"


def register(model, columns, labels) -> None:
    model.fit(columns, labels)
    version = mlflow.sklearn.log_model(
        model,
        name="model",
        registered_model_name=NAME,
        signature=infer_signature(columns, model.predict(columns)),
        input_example=columns.head(2),
        pip_requirements=["scikit-learn"],
    ).registered_model_version
    print(f"{NAME} {version}: {type(model).__name__} of {', '.join(columns.columns)}")


if __name__ == "__main__":
    flowers = load_iris(as_frame=True)
    columns = flowers.data.set_axis(["sepal_length", "sepal_width", "petal_length", "petal_width"], axis=1)
    labels = flowers.target_names[flowers.target]
    register(make_pipeline(StandardScaler(), LogisticRegression()), columns, labels)
    register(GaussianNB(), columns, labels)
    register(GaussianNB(), columns[["petal_length", "petal_width"]], labels)
